from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfaug.common.errors import DataError
from selfaug.data.masks import conversation_labels
from tests.unit.data.chat import CHATML, FAMILIES, MARKED, QWEN3, byte_level, tokenizer_of

KINDS = ("byte_level", "trimmed", "sentencepiece_like")
# Words of the training text and bytes outside it; neither begins nor ends with white space, as templates may trim.
WORDS = st.text(alphabet="abcXYZ 09.,!?\n-é日😀", min_size=1, max_size=30).map(str.strip).filter(bool)


def chat(*turns: str, system: str | None = None) -> list[dict[str, str]]:
    """Messages with the roles user, assistant, user, ... in turn."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    return ([{"role": "system", "content": system}] if system else []) + messages


def runs(tokenizer, ids: list[int], labels: list[int]) -> list[str]:
    """The decoded stretches of labelled tokens; labels must be the ids themselves."""
    assert len(ids) == len(labels)
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
    stretches = groupby(zip(ids, labels, strict=True), key=lambda pair: pair[1] != -100)
    return [tokenizer.decode([token for token, _ in pairs]) for labelled, pairs in stretches if labelled]


def bare(text: str) -> str:
    return "".join(text.replace("<think>", "").replace("</think>", "").split())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(turns=st.lists(WORDS, min_size=2, max_size=7), system=st.none() | WORDS)
def test_exactly_the_words_and_the_end_of_each_assistant_turn_are_labelled(name, kind, turns, system):
    family = FAMILIES[name]
    tokenizer = tokenizer_of(family, kind)
    messages = chat(*turns, system=system if family.system else None)
    ids, labels = conversation_labels(tokenizer, messages)
    said = [message["content"] for message in messages if message["role"] == "assistant"]
    assert said
    found = runs(tokenizer, ids, labels)
    assert len(found) == len(said)
    for i, (run, words) in enumerate(zip(found, said, strict=True)):
        last = i == len(said) - 1 and messages[-1]["role"] == "assistant"
        ends = family.end + (family.eos if last and family.eos != family.end else "")
        # Equality: not one more token of a header, a user or the system is in it.
        assert bare(run) == bare(words) + ends
    assert labels[0] == -100


@pytest.mark.parametrize("name", FAMILIES)
def test_the_whole_text_is_the_template_s_own(name):
    family = FAMILIES[name]
    tokenizer = tokenizer_of(family)
    messages = chat("Who are you?", "I am fine", "Where?", "In Paris")
    ids, _ = conversation_labels(tokenizer, messages)
    text = tokenizer.apply_chat_template(messages, tokenize=False).rstrip()
    assert tokenizer.decode(ids) == (text if text.endswith(family.eos) else text + family.eos)


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "marked"])
def test_the_header_of_the_answer_is_not_labelled(name):
    family = FAMILIES[name]
    tokenizer = tokenizer_of(family)
    ids, labels = conversation_labels(tokenizer, chat("Who?", "I am fine"))
    prompt = tokenizer.apply_chat_template(chat("Who?"), add_generation_prompt=True)["input_ids"]
    first = next(i for i, label in enumerate(labels) if label != -100)
    assert ids[:first] == prompt


def test_marked_templates_agree_with_transformers_mask():
    tokenizer = tokenizer_of(FAMILIES["marked"])
    messages = chat("Who are you?", "I am fine", "Where?", "In Paris", system="Be kind.")
    ids, labels = conversation_labels(tokenizer, messages)
    theirs = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    assert sum(theirs["assistant_masks"]) > 4
    assert theirs["input_ids"][: len(ids)] == ids
    assert theirs["assistant_masks"][: len(ids)] == [int(label != -100) for label in labels]
    assert not any(theirs["assistant_masks"][len(ids) :])


def test_markers_that_mark_nothing_are_refused():
    template = MARKED.replace("m['role'] == 'assistant'", "m['role'] == 'bot'")
    with pytest.raises(DataError, match="mark nothing"):
        conversation_labels(byte_level(None, "<|im_end|>", template), chat("Who?", "I"))


def test_thoughts_that_the_template_drops_are_not_in_the_text():
    tokenizer = tokenizer_of(FAMILIES["qwen3"])
    messages = chat("Who?", "<think>\nthe dog\n</think>\n\nI am fine", "Where?", "<think>\nhm\n</think>\n\nIn Paris")
    ids, labels = conversation_labels(tokenizer, messages)
    assert "the dog" not in tokenizer.decode(ids)
    assert runs(tokenizer, ids, labels) == ["I am fine<|im_end|>", "<think>\nhm\n</think>\n\nIn Paris<|im_end|>"]
    assert labels[-1] == tokenizer.eos_token_id


def test_a_generation_prompt_with_an_empty_thought_stays_out_of_the_labels():
    tokenizer = tokenizer_of(FAMILIES["qwen3"])
    messages, off = chat("Who?", "I am fine", "Where?", "In Paris"), {"enable_thinking": False}
    prompt = tokenizer.apply_chat_template(messages[:3], tokenize=False, add_generation_prompt=True, **off)
    assert prompt.endswith("</think>\n\n")
    ids, labels = conversation_labels(tokenizer, messages, chat_template_kwargs=off)
    assert runs(tokenizer, ids, labels) == ["I am fine<|im_end|>", "In Paris<|im_end|>"]


def test_a_conversation_that_begins_with_the_assistant_or_ends_with_the_user():
    tokenizer = tokenizer_of(FAMILIES["chatml"])
    messages = [{"role": "assistant", "content": "Hello!"}, *chat("Who?", "I", "Where?")]
    ids, labels = conversation_labels(tokenizer, messages)
    # No generation prompt can be rendered for no messages at all: the words and the end still are exact.
    assert runs(tokenizer, ids, labels) == ["Hello!<|im_end|>", "I<|im_end|>"]
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(messages, tokenize=False)
    assert labels[-1] == -100


def test_words_that_merge_with_the_header_are_tokenised_as_the_model_writes_them():
    tokenizer = tokenizer_of(FAMILIES["chatml"])
    messages = chat("Who?", "\n\n\nI am")
    joint = tokenizer.apply_chat_template(messages)["input_ids"]
    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True)["input_ids"]
    assert joint[: len(prompt)] != prompt, "the tokenizer must merge across the boundary, or this shows nothing"
    ids, labels = conversation_labels(tokenizer, messages)
    assert ids[: len(prompt)] == prompt
    assert runs(tokenizer, ids, labels) == ["\n\n\nI am<|im_end|>"]
    assert tokenizer.decode(ids) == tokenizer.decode(joint).rstrip()


def test_an_answer_without_end_of_turn_that_merges_with_the_next_header():
    template = (
        "{% for m in messages %}{{ m['role'] }}\n\n{{ m['content'] }}\n\n{% endfor %}"
        "{{ 'assistant\n\n' if add_generation_prompt else '' }}"
    )
    tokenizer = byte_level("<s>", "</s>", template)
    ids, labels = conversation_labels(tokenizer, chat("Who?", "I am\n\nfine", "Where?", "Paris"))
    assert runs(tokenizer, ids, labels) == ["I am\n\nfine", "Paris</s>"]


def test_a_template_that_refuses_parts_of_a_conversation():
    refusing = "{% if messages | length < 4 and messages | length != 2 %}{{ raise_exception('too short') }}{% endif %}"
    tokenizer = byte_level(None, "<|im_end|>", refusing + CHATML)
    messages = chat("Who?", "I am", "Where?", "Paris")
    ids, labels = conversation_labels(tokenizer, messages)
    assert runs(tokenizer, ids, labels) == ["I am<|im_end|>", "Paris<|im_end|>"]


def test_a_template_that_changes_the_words():
    tokenizer = byte_level(None, "<|im_end|>", CHATML.replace("m['content']", "m['content'] | upper"))
    ids, labels = conversation_labels(tokenizer, chat("who?", "i am", "where?", "paris"))
    assert runs(tokenizer, ids, labels) == ["I AM<|im_end|>", "PARIS<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ messages[1]['content'] }} is said\n" + QWEN3, "in several places"),
        (
            CHATML.replace("{{ m['content'] }}", "{{ m['content'] if loop.last or m['role'] == 'user' else '...' }}"),
            "leaves out the words of message 1",
        ),
    ],
    ids=["hoisted", "dropped"],
)
def test_turns_that_cannot_be_told_are_refused_by_name(template, problem):
    messages = chat("Who?", "<think>\nhm\n</think>\n\nI am", "Where?", "Paris")
    with pytest.raises(DataError, match=problem):
        conversation_labels(byte_level(None, "<|im_end|>", template), messages)


def test_a_call_of_a_tool_is_labelled_and_its_result_is_not():
    template = (
        "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] or '' }}"
        "{% for call in m['tool_calls'] or [] %}<call>{{ call['function'] | tojson }}</call>{% endfor %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": {"what": "dog", "many": 3}}}
    messages = [
        {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "in the park"},
        {"role": "assistant", "content": "In the park."},
    ]
    tools = [{"type": "function", "function": {"name": "find", "parameters": {}}}]
    tokenizer = byte_level(None, "<|im_end|>", template)
    ids, labels = conversation_labels(tokenizer, messages, tools=tools)
    words = '<call>{"name": "find", "arguments": {"what": "dog", "many": 3}}</call><|im_end|>'
    assert runs(tokenizer, ids, labels) == [words, "In the park.<|im_end|>"]
    assert "parameters" in tokenizer.decode(ids)


def test_documents_reach_the_template_and_are_not_labelled():
    template = "{% for d in documents %}[{{ d['title'] }}] {{ d['text'] }}\n{% endfor %}" + CHATML
    tokenizer = byte_level(None, "<|im_end|>", template)
    documents = [{"title": "Paris", "text": "The Eiffel Tower stands there."}]
    ids, labels = conversation_labels(tokenizer, chat("Where?", "Paris"), documents=documents)
    assert tokenizer.decode(ids).startswith("[Paris] The Eiffel Tower")
    assert runs(tokenizer, ids, labels) == ["Paris<|im_end|>"]


def test_what_the_template_puts_between_header_and_words_is_the_assistant_s_too():
    # As in the inference prompt, which ends before it; the EOS at the end keeps parts from being prefixes.
    template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ ' say: ' if m['role'] == 'assistant' }}{{ m['content'] }}<|end|>"
        "{% endfor %}{{ '<|assistant|>' if add_generation_prompt else eos_token }}"
    )
    tokenizer = byte_level(None, "<|endoftext|>", template)
    ids, labels = conversation_labels(tokenizer, chat("Who?", "I", "Where?", "Paris"))
    assert runs(tokenizer, ids, labels) == [" say: I<|end|>", " say: Paris<|end|><|endoftext|>"]


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(DataError, match="no assistant turn"):
        conversation_labels(tokenizer_of(FAMILIES["chatml"]), chat("Who?"))
    with pytest.raises(DataError, match="has no chat template"):
        conversation_labels(byte_level("<s>", "</s>", None), chat("Who?", "I"))
    bad = [*chat("Who?", "I"), {"role": "assistant", "content": "again"}]
    with pytest.raises(DataError, match="roles must alternate"):
        conversation_labels(tokenizer_of(FAMILIES["mistral"]), bad)
