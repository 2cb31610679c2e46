from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfaug.common.errors import ConfigError, DataError
from selfaug.data.encode import aligned_tokens, encode
from selfaug.data.lengths import quantiles
from selfaug.data.prompts import Renderer
from selfaug.data.record import Conversation, Document, Record
from selfaug.data.tokens import record_tokens
from tests.unit.data.chat import CHATML, FAMILIES, byte_level, tokenizer_of

LONG = "Once upon a time there was a little dog. " * 40


def conversation_of(record: Record, renderer: Renderer) -> Conversation:
    """The same dialogue as messages."""
    answer = {"role": "assistant", "content": renderer.response_text(record)}
    return Conversation((*renderer.messages(record), answer))


@pytest.fixture
def tokenizer():
    return tokenizer_of(FAMILIES["chatml"])


@pytest.fixture
def renderer(tokenizer):
    return Renderer.for_tokenizer(tokenizer)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_record_and_the_same_conversation_give_the_same_row(name):
    tokenizer = tokenizer_of(FAMILIES[name])
    renderer = Renderer.for_tokenizer(tokenizer)
    record = Record("Where is it?", (Document("It stands in Paris."),), ("In Paris, I think",))
    encoded = encode([record, conversation_of(record, renderer)], tokenizer, renderer, max_length=None)
    first, second = encoded.rows
    assert first["input_ids"] == second["input_ids"]
    assert first["labels"] == second["labels"]
    assert {label != -100 for label in first["labels"]} == {True, False}


def test_a_mixture_is_counted(tokenizer, renderer):
    short = Record("Where?", (Document("In Paris."),), ("Paris",), id="a")
    two = Record(
        "Where?", (Document("It is in Paris.", score=1.0), Document(LONG + "Rome.", score=0.5)), ("Rome",), id="b"
    )
    huge = Record("Where?", (Document("In Paris."),), (LONG,), id="c")
    alone = Record(LONG, (), ("I",), id="d")
    attack = Conversation(
        ({"role": "user", "content": "<|im_end|> <|im_end|>"}, {"role": "assistant", "content": "No."})
    )
    seen = []
    encoded = encode([short, two, huge, alone, attack], tokenizer, renderer, max_length=150, progress=seen.append)
    report = encoded.report
    assert seen == [1, 2, 3, 4, 5]
    assert encoded.places == [0, 1, 4]
    assert (report.rows, report.kept) == (5, 3)
    assert [item.row for item in report.left_out] == ["row 3 (c)", "row 4 (d)"]
    assert "no documents to drop" in report.left_out[1].reason
    assert (report.documents, report.documents_dropped, report.shortened, report.answers_lost) == (3, 0, 1, 1)
    assert report.escaped == {"<|im_end|>": 2}
    assert report.escaped_specials == 2
    for row, prompt, response in zip(encoded.rows, report.prompt_tokens, report.response_tokens, strict=True):
        assert len(row["input_ids"]) == len(row["labels"]) == prompt + response <= 150
        assert sum(label != -100 for label in row["labels"]) == response
    prompt_ids, response_ids = record_tokens(renderer, tokenizer, short)
    assert (report.prompt_tokens[0], report.response_tokens[0]) == (len(prompt_ids), len(response_ids))
    assert report.whole_tokens[1] > 400 > report.total_tokens[1]
    assert report.aligned_tokens == sum(aligned_tokens(row["labels"]) for row in encoded.rows)
    row = json.loads(json.dumps(report.as_dict()))
    assert row["left_out"][0]["row"] == "row 3 (c)"
    assert row["tokens_per_row"]["total"]["max"] == max(report.total_tokens)
    assert "prompt_tokens" not in row
    text = "\n".join(report.lines())
    for part in (
        "3 of 5 rows kept (max_length 150)",
        "row 4 (d): needs",
        "'<|im_end|>' 2",
        "1 rows have a shortened document",
    ):
        assert part in text


def test_an_answer_is_lost_only_where_its_documents_held_it(tokenizer, renderer):
    documents = (Document("It is in Paris."), Document(LONG + "Rome."))
    counts = []
    for answers in (("PARIS",), ("rome", "Paris"), ("Rome",), ("Oslo",)):
        report = encode([Record("Where?", documents, answers)], tokenizer, renderer, max_length=150).report
        assert report.shortened == 1
        counts.append(report.answers_lost)
    assert counts == [0, 0, 1, 0]


def test_a_prompt_is_cut_from_the_left_only_behind_its_flag_and_keeps_its_bos():
    tokenizer = byte_level("<s>", "</s>", None)
    renderer = Renderer.for_tokenizer(tokenizer)
    alone = Record(LONG, (), ("In Paris",))
    assert encode([alone], tokenizer, renderer, max_length=64).rows == []
    encoded = encode([alone], tokenizer, renderer, max_length=64, cut_prompt_left=True)
    ids = encoded.rows[0]["input_ids"]
    prompt, response = record_tokens(renderer, tokenizer, alone)
    assert ids == [tokenizer.bos_token_id, *(prompt + response)[-63:]]
    assert encoded.rows[0]["labels"] == [-100] * (64 - len(response)) + response
    assert encoded.report.prompts_cut == 1


def test_documents_of_a_conversation_are_fitted_too(tokenizer, renderer):
    messages = ({"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Paris"})
    item = Conversation(messages, (Document("In Paris."), Document(LONG)))
    whole = encode([item], tokenizer, renderer, max_length=None)
    assert "Document 2" in tokenizer.decode(whole.rows[0]["input_ids"])
    fitted = encode([item], tokenizer, renderer, max_length=80)
    text = tokenizer.decode(fitted.rows[0]["input_ids"])
    assert text.startswith("<|im_start|>user\nDocument 1\nIn Paris.\n\nDocument 2\nOnce upon a time")
    assert len(fitted.rows[0]["input_ids"]) <= 80
    assert fitted.report.shortened == 1


def test_a_template_that_places_documents_gets_them():
    template = "{% for d in documents or [] %}<doc>{{ d.title }}: {{ d.text }}</doc>\n{% endfor %}" + CHATML
    tokenizer = byte_level(None, "<|im_end|>", template)
    renderer = Renderer.for_tokenizer(tokenizer)
    assert renderer.template_documents
    messages = ({"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Paris"})
    item = Conversation(messages, (Document("In <|im_end|>", title="T"),))
    text = tokenizer.decode(encode([item], tokenizer, renderer, max_length=None).rows[0]["input_ids"])
    assert (
        text
        == "<doc>T: In < |im_end|></doc>\n<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\nParis<|im_end|>"
    )


def test_conversations_without_a_chat_template():
    tokenizer = byte_level("<s>", "</s>", None)
    turns = ("Who?", "I am", "Where?", "Paris")
    messages = tuple({"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns))
    row = encode([Conversation(messages)], tokenizer, Renderer.for_tokenizer(tokenizer), max_length=None).rows[0]
    assert tokenizer.decode(row["input_ids"]) == (
        "<s>User: Who?\n\nAssistant: I am</s>\n\nUser: Where?\n\nAssistant: Paris</s>"
    )
    assert tokenizer.decode([label for label in row["labels"] if label != -100]) == " I am</s> Paris</s>"


def test_a_system_text_is_folded_where_the_template_refuses_it():
    tokenizer = tokenizer_of(FAMILIES["gemma"])
    roles = ("system", "user", "assistant")
    item = Conversation(tuple({"role": role, "content": f"words of {role}"} for role in roles))
    row = encode([item], tokenizer, Renderer.for_tokenizer(tokenizer), max_length=None).rows[0]
    assert "user\nwords of system\n\nwords of user<end_of_turn>" in tokenizer.decode(row["input_ids"])


def test_an_item_without_an_exact_form_is_an_error_or_counted():
    tokenizer = tokenizer_of(FAMILIES["mistral"])
    renderer = Renderer.for_tokenizer(tokenizer)
    good = Conversation(({"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I"}))
    bad = Conversation((*good.messages, {"role": "assistant", "content": "again"}), id="twice")
    with pytest.raises(DataError, match=r"row 2 \(twice\): .*roles must alternate"):
        encode([good, bad], tokenizer, renderer, max_length=None)
    encoded = encode([good, bad], tokenizer, renderer, max_length=None, on_bad_row="skip")
    assert encoded.places == [0]
    assert "roles must alternate" in encoded.report.left_out[0].reason


def test_another_tokenizer_s_template_is_refused_before_any_row(renderer):
    with pytest.raises(ConfigError, match="not trained on"):
        encode([], tokenizer_of(FAMILIES["llama3"]), renderer, max_length=None)


@given(st.lists(st.sampled_from([-100, 5, 7]), max_size=30))
def test_aligned_tokens_by_a_loop(labels):
    count = 0
    for t in range(len(labels) - 1):
        if labels[t] == -100 and labels[t + 1] == -100:
            count += 1
    assert aligned_tokens(labels) == count


def test_quantiles_are_values_that_occurred():
    points = quantiles([7, 1, 3, 5, 9])
    assert (points["min"], points["median"], points["max"], points["mean"]) == (1, 5, 9, 5)
    assert quantiles([4]) == {"min": 4, "p10": 4, "median": 4, "p90": 4, "p99": 4, "max": 4, "mean": 4}
    assert quantiles([]) == {}


def test_nothing_heavy_is_imported():
    code = "import sys, selfaug.data.encode; print(sorted({'torch', 'transformers', 'trl'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def labelled(tokenizer, row) -> str:
    return tokenizer.decode([label for label in row["labels"] if label != -100])


FLAGGED = [
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Ann", "weight": 0},
    {"role": "user", "content": "Where?"},
    {"role": "assistant", "content": "In Paris", "weight": 1},
    {"role": "user", "content": "When?"},
    {"role": "assistant", "content": "Today", "train": False},
]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_turn_with_a_flag_against_it_is_not_trained(name):
    tokenizer = tokenizer_of(FAMILIES[name])
    renderer = Renderer.for_tokenizer(tokenizer)
    row = encode([Conversation(tuple(FLAGGED))], tokenizer, renderer, max_length=None).rows[0]
    assert labelled(tokenizer, row).replace("<think>\n\n</think>\n\n", "").strip() == f"In Paris{FAMILIES[name].end}"
    for words in ("Ann", "Paris", "Today"):
        assert words in tokenizer.decode(row["input_ids"])
    # The template does not see the flags.
    plain = [{key: message[key] for key in ("role", "content")} for message in FLAGGED]
    unflagged = encode([Conversation(tuple(plain))], tokenizer, renderer, max_length=None).rows[0]
    before = [tokenizer.decode(made["input_ids"]).partition("Today")[0] for made in (row, unflagged)]
    assert before[0] == before[1]
    assert labelled(tokenizer, unflagged).count("Ann") == 1


def test_a_template_that_prints_whole_messages_does_not_print_flags():
    template = CHATML.replace("{{ m['content'] }}", "{{ m | tojson }}")
    tokenizer = byte_level(None, "<|im_end|>", template)
    renderer = Renderer.for_tokenizer(tokenizer)
    row = encode([Conversation(tuple(FLAGGED))], tokenizer, renderer, max_length=None).rows[0]
    assert '"content": "Ann"' in tokenizer.decode(row["input_ids"])
    assert "weight" not in tokenizer.decode(row["input_ids"])


def test_flags_hold_in_a_data_set_given_in_python():
    from datasets import Dataset

    from selfaug.training.rows import prepare_rows

    tokenizer = tokenizer_of(FAMILIES["chatml"])
    table = Dataset.from_list([{"messages": FLAGGED}])
    assert table[0]["messages"][0]["weight"] is None, "a table has every key in every message"
    options = {"tokenizer": tokenizer, "renderer": None, "max_length": None, "cut_prompt_left": False}
    rows = prepare_rows(table, **options, tokenise=lambda rows: rows, name="train")
    assert labelled(tokenizer, rows[0]) == "In Paris<|im_end|>"
    bad = Dataset.from_list([{"messages": [FLAGGED[0], {**FLAGGED[1], "weight": 0.5}, *FLAGGED[2:]]}])
    with pytest.raises(DataError, match=r"weight.*0 \(not trained\) or 1"):
        prepare_rows(bad, **options, tokenise=lambda rows: rows, name="train")


def test_rows_that_a_template_leaves_calls_out_of_are_counted_or_an_error():
    tokenizer = tokenizer_of(FAMILIES["chatml"])
    renderer = Renderer.for_tokenizer(tokenizer)
    call = {"type": "function", "function": {"name": "find", "arguments": {"what": "dog"}}}
    asked = {"role": "user", "content": "Where?"}
    calls = Conversation((asked, {"role": "assistant", "content": "", "tool_calls": [call]}), id="calls")
    tools = Conversation((asked, {"role": "assistant", "content": "There"}), (), "tools", ({"name": "find"},))
    good = Conversation((asked, {"role": "assistant", "content": "There"}))
    for item, what in ((calls, "tool call 'find' of message 1"), (tools, "the tool 'find'")):
        with pytest.raises(DataError, match=f"row 1 .*leaves out .*{what}"):
            encode([item, good], tokenizer, renderer, max_length=None)
    encoded = encode([calls, tools, good], tokenizer, renderer, max_length=None, on_bad_row="skip")
    assert encoded.places == [2]
    assert all("leaves out" in item.reason for item in encoded.report.left_out)


OPENED = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")


@pytest.mark.parametrize(
    ("answer", "response", "counts"),
    [
        ("In Paris", "\n</think>\n\nIn Paris<|im_end|>", (0, 1)),
        ("<think>\nhm\n</think>\n\nIn Paris", "hm\n</think>\n\nIn Paris<|im_end|>", (0, 0)),
        ("<think>hm</think>In Paris", "hm</think>In Paris<|im_end|>", (0, 0)),
        ("hm\n</think>\n\nIn Paris", "hm\n</think>\n\nIn Paris<|im_end|>", (0, 0)),
    ],
    ids=["plain", "thought", "thought on one line", "thought without its opening"],
)
def test_a_prompt_that_opens_a_thought_is_answered_out_of_it(answer, response, counts):
    tokenizer = byte_level(None, "<|im_end|>", OPENED)
    renderer = Renderer.for_tokenizer(tokenizer)
    record = Record("Where?", (Document("In Paris."),), (answer,))
    assert renderer.prompt_text(tokenizer, record).endswith("<think>\n")
    encoded = encode([record, conversation_of(record, renderer)], tokenizer, renderer, max_length=None)
    first, second = encoded.rows
    assert first == second
    start = len(renderer.prompt_ids(tokenizer, record))
    assert first["input_ids"][:start] == renderer.prompt_ids(tokenizer, record)
    assert first["labels"][start:] == first["input_ids"][start:]
    assert tokenizer.decode(first["input_ids"][start:]) == response
    assert (encoded.report.thoughts_dropped, encoded.report.thoughts_closed) == tuple(2 * count for count in counts)


def test_a_thought_that_is_opened_in_other_words_is_refused():
    template = CHATML.replace("assistant\n{% endif %}", "assistant\n<|begin_of_reasoning|>{% endif %}")
    tokenizer = byte_level(None, "<|im_end|>", template)
    renderer = Renderer.for_tokenizer(tokenizer)
    record = Record("Where?", (Document("In Paris."),), ("In Paris",))
    for item in (record, conversation_of(record, renderer)):
        with pytest.raises(DataError, match="begin_of_reasoning"):
            encode([item], tokenizer, renderer, max_length=None)


def test_a_template_that_opens_the_next_turn_unasked_is_refused():
    template = CHATML.replace("{% if add_generation_prompt %}", "{% if true %}")
    tokenizer = byte_level(None, "<|im_end|>", template)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I"}],
                                         tokenize=False)  # fmt: skip
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    with pytest.raises(DataError, match="without being asked to"):
        Renderer.for_tokenizer(tokenizer)


def test_a_template_that_takes_parts_gets_parts():
    template = CHATML.replace("{{ m['content'] }}", "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}")
    tokenizer = byte_level(None, "<|im_end|>", template)
    record = Record("Where?", (Document("In Paris."),), ("In Paris",))
    row = encode([record], tokenizer, Renderer.for_tokenizer(tokenizer), max_length=None).rows[0]
    plain = byte_level(None, "<|im_end|>", CHATML)
    assert row == encode([record], plain, Renderer.for_tokenizer(plain), max_length=None).rows[0]


def test_smollm2_is_refused_what_its_template_leaves_out(smollm2):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    renderer = Renderer.for_tokenizer(tokenizer)
    asked = {"role": "user", "content": "What is the weather in Rome?"}
    function = {"name": "get_weather", "arguments": {"city": "Rome"}}
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    assert "get_weather" not in tokenizer.apply_chat_template([asked, call], tokenize=False)
    said = {"role": "assistant", "content": "It is warm.", "reasoning_content": "I know it."}
    encoded = encode(
        [
            Conversation((asked, call)),
            Conversation((asked, said), tools=({"type": "function", "function": {"name": "get_weather"}},)),
            Conversation((asked, {**call, "content": "I look."})),
            Conversation((asked, said, asked, {**said, "weight": 0}, asked, said)),
        ],
        tokenizer,
        renderer,
        max_length=None,
        on_bad_row="skip",
    )
    reasons = [item.reason for item in encoded.report.left_out]
    assert [("get_weather" in reason, "leaves out" in reason) for reason in reasons] == [(True, True)] * 3
    assert encoded.places == [3]
    assert labelled(tokenizer, encoded.rows[0]) == "It is warm.<|im_end|>" * 2
    assert encoded.report.thoughts_dropped == 2
