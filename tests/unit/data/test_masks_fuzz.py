"""Generated chat templates and conversations: nothing that is not the assistant's is ever labelled.

Each role writes in an alphabet of its own and templates write ASCII, so that a labelled text shows whose it is.
There are 200 cases; ``-m study`` runs 10,000.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from itertools import groupby
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from selfaug.common.errors import DataError
from selfaug.data.masks import conversation_labels

LETTERS = {
    "system": "αβγδ",
    "user": "абвг",
    "tool": "あいうえ",
    "assistant": "աբգդ",
    "untrained": "აბგდ",
    "call": "ᚠᚢᚦᚨ",
}
SPECIALS = ["<bos>", "<eos>", "<|start|>", "<|mid|>", "<|end|>", "<call>", "</call>", "[INST]", "[/INST]", "<|return|>"]


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIALS)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>")


# How a turn is opened, what ends it, and what opens an answer: {r} is the role's name.
FRAMES = [
    ("<|start|>{r}<|mid|>", "<|end|>", "<|start|>assistant<|mid|>"),
    ("<|start|>{r}\\n", "<|end|>\\n", "<|start|>assistant\\n"),
    ("\\n<|start|>{r}: ", "<|end|>", "\\n<|start|>assistant: "),
    ("### {r}:\\n", "\\n\\n", "### assistant:\\n"),
    ("{r}: ", "<eos>", "assistant: "),
    ("{r}: ", "<eos>\\n", "assistant:"),
    ("\\n{r}\\n", "\\n", "\\nassistant\\n"),
    ("<|start|>{r}<|mid|>", "<|end|>", "<|start|>assistant"),
]
CONTENTS = ["{c}", "{c} | trim", "{c}.strip()", "{c}.rstrip()", "{c}.replace('\\n', ' ')"]
THOUGHTS = ["raw", "always", "after the last question", "dropped", "empty block at the end"]
CALLS = ["dropped", "json", "json", "pairs", "python", "first alone"]
RESULTS = ["own", "own", "as user", "as user", "json", "dropped", "with the call's name", "inside the call's turn"]
SYSTEMS = ["own", "own", "own", "in first user", "in last user", "refused", "dropped"]
EOS = ["none", "at the end", "late", "return"]
PROMPTS = ["header", "header", "header", "opened thought", "closed thought", "none", "always"]
ODDITIES = [
    *[""] * 12,
    "first answer on top",
    "question in the answer",
    "twice",
    "next question before",
    "bos later",
]


@st.composite
def templates(draw) -> str:
    """The source of a chat template."""
    opening, end, prompt = draw(st.sampled_from(FRAMES))
    thoughts, calls, results = (draw(st.sampled_from(kinds)) for kinds in (THOUGHTS, CALLS, RESULTS))
    system, eos, generation = (draw(st.sampled_from(kinds)) for kinds in (SYSTEMS, EOS, PROMPTS))
    odd, content = draw(st.sampled_from(ODDITIES)), draw(st.sampled_from(CONTENTS)).replace("{c}", "content")
    name = draw(
        st.sampled_from(["m.role", "m['role'] | upper", "{'assistant': 'assistant'}.get(m.role, 'x' + m.role)"])
    )

    def head(role: str) -> str:
        before, _, after = opening.partition("{r}")
        return f"{{{{ '{before}' + ({role}) + '{after}' }}}}" if "{r}" in opening else f"{{{{ '{opening}' }}}}"

    top = "{%- set ns = namespace(last=-1, first=true, name='', inside=false) -%}"
    top += "{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}"
    top += "{%- endfor -%}"
    top += "" if odd == "bos later" else draw(st.sampled_from(["", "{{ bos_token }}"]))
    if odd == "first answer on top":
        top += "{% for m in messages if m.role == 'assistant' %}{{ m.content if loop.first }}{% endfor %}"
    if draw(COIN):
        top += "{%- if tools -%}{{ '# Tools: ' + (tools | tojson) }}{%- endif -%}"
    systems = {
        "own": head("m.role") + "{{ content }}{{ '" + end + "' }}",
        "in first user": "",
        "in last user": "",
        "refused": "{{ raise_exception('no system') }}",
        "dropped": "",
    }[system]
    folded = ""
    if system in ("in first user", "in last user"):
        when = "ns.first" if system == "in first user" else "loop.index0 == ns.last"
        folded = f"{{{{ messages[0].content + '\\n' if messages[0].role == 'system' and {when} }}}}"
        folded += "{% set ns.first = false %}"
    late = (
        "{{ eos_token if not loop.first and messages[loop.index0 - 1].role == 'assistant' }}" if eos == "late" else ""
    )
    ahead = "{{ messages[loop.index0 + 1].content if not loop.last }}" if odd == "next question before" else ""
    user = late + head(name) + folded + "{{ content }}{{ '" + end + "' }}"
    seen = {
        "raw": "{% set shown = m.content %}{% set block = '' %}",
        "always": "{% set shown = words %}{% set block = '<think>\\n' + thought + '\\n</think>\\n\\n' %}",
        "after the last question": "{% set shown = words %}{% set block = '<think>\\n' + thought + "
        "'\\n</think>\\n\\n' if loop.index0 > ns.last else '' %}",
        "dropped": "{% set shown = words %}{% set block = '' %}",
        "empty block at the end": "{% set shown = words %}{% set block = '<think>\\n' + thought + "
        "'\\n</think>\\n\\n' if loop.last or thought else '' %}",
    }[thoughts]
    written = {
        "dropped": "",
        "json": "<call>{{ c.function | tojson }}</call>",
        "pairs": "<call>{{ c.function.name }}{% for k, v in c.function.arguments | items %}\n{{ k }}={{ v }}"
        "{% endfor %}</call>",
        "python": "<call>{{ c.function.name }}({{ c.function.arguments }})</call>",
        "first alone": "{% if loop.first %}<call>{{ c.function.name }}{{ c.function.arguments | tojson }}</call>"
        "{% endif %}",
    }[calls]
    answer = (
        "{% set words = m.content.split('</think>')[-1].lstrip('\\n') %}"
        "{% set thought = m.reasoning_content or (m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') "
        "if '</think>' in m.content else '') %}"
        + seen
        + head("'assistant'")
        + ahead
        + "{{ block }}{% set content = shown %}{{ "
        + content
        + " }}"
        + ("{{ content }}" if odd == "twice" else "")
        + ("{{ ' re: ' + messages[loop.index0 - 1].content }}" if odd == "question in the answer" else "")
        + "{% for c in m.tool_calls or [] %}{% set ns.name = c.function.name %}"
        + written
        + "{% endfor %}"
        + (
            "{% if m.tool_calls %}{% for r in messages[loop.index:] if r.role == 'tool' %}{{ '[' + r.content + ']' }}"
            "{% endfor %}{% endif %}"
            if results == "inside the call's turn"
            else ""
        )
        + ("{{ '<|return|>' if loop.last and not add_generation_prompt else '" + end + "' }}" if eos == "return" else
           "{{ '" + ("" if eos == "late" else end) + "' }}")
    )  # fmt: skip
    tool = {
        "own": head("m.role") + "{{ content }}{{ '" + end + "' }}",
        "as user": "{% if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}"
        + head("'user'")
        + "{% endif %}"
        "{{ '<r>' + content + '</r>' }}"
        "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '" + end + "' }}{% endif %}",
        "json": head("m.role") + "{{ content | tojson }}{{ '" + end + "' }}",
        "dropped": "",
        "with the call's name": head("m.role + ' ' + ns.name") + "{{ content }}{{ '" + end + "' }}",
        "inside the call's turn": "",
    }[results]
    closing = {
        "header": "{{ '" + prompt + "' }}",
        "opened thought": "{{ '" + prompt + "<think>\\n' }}",
        "closed thought": "{{ '" + prompt + "<think>\\n\\n</think>\\n\\n' }}",
        "none": "",
        "always": "",
    }[generation]
    last = "{{ eos_token if not add_generation_prompt }}" if eos == "at the end" else ""
    always = "{{ '" + prompt + "' }}" if generation == "always" else ""
    strict = draw(st.sampled_from(["", "", "", "{% if loop.index0 > 3 %}{{ raise_exception('too long') }}{% endif %}"]))
    return (
        top + "{%- for m in messages -%}" + strict + ("{{ bos_token if loop.first }}" if odd == "bos later" else "")
        + "{%- set content = m.content -%}{%- if m.role == 'system' -%}" + systems
        + "{%- elif m.role == 'user' -%}" + user + "{%- elif m.role == 'tool' -%}" + tool
        + "{%- else -%}" + answer + "{%- endif -%}{%- endfor -%}" + last + always
        + "{%- if add_generation_prompt -%}" + closing + "{%- endif -%}"
    )  # fmt: skip


@cache
def words(role: str) -> st.SearchStrategy[str]:
    """Texts in the role's letters, with signs and white space that templates and JSON may look at."""
    signs = " .,!?-_\n'\"{}[]:"
    ends = st.sampled_from(["", "", " ", "\n", ".", '"', "'", "{", "]"])
    middle = st.text(LETTERS[role] * 3 + signs, max_size=8)
    return st.tuples(ends, st.sampled_from(LETTERS[role]), middle, ends).map("".join)


NAMES = st.text(LETTERS["call"], min_size=1, max_size=4)
VALUES = words("call") | st.integers(0, 99) | st.booleans() | st.none()
FUNCTIONS = st.fixed_dictionaries(
    {"name": NAMES, "arguments": st.fixed_dictionaries({}, optional={"ab": VALUES, "cd_e": VALUES})}
)
OFTEN_NOT, COIN = st.sampled_from([0, 0, 0, 1, 2]), st.booleans()
FLAGS = st.sampled_from([None, None, None, {"weight": 0}, {"train": False}])
THINKING = st.sampled_from(["no thought", "no thought", "inline", "field"])


@st.composite
def conversations(draw) -> tuple[list[dict[str, Any]], list[Any] | None]:
    """Messages in one of the usual orders, and tools for some."""
    messages: list[dict[str, Any]] = []
    if draw(COIN):
        messages.append({"role": "system", "content": draw(words("system"))})
    for number in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(words("user"))})
        for _ in range(draw(OFTEN_NOT)):
            functions = [draw(FUNCTIONS) for _ in range(1 + draw(COIN))]
            calls = [{"id": f"c{i}", "type": "function", "function": made} for i, made in enumerate(functions)]
            if draw(COIN):
                for call in calls:
                    call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
            beside = draw(words("assistant")) if draw(COIN) else ""
            messages.append({"role": "assistant", "content": beside, "tool_calls": calls})
            messages += [{"role": "tool", "content": draw(words("tool")), "tool_call_id": call["id"]} for call in calls]
        off = draw(FLAGS) if number else None
        role = "untrained" if off else "assistant"
        message = {"role": "assistant", "content": draw(words(role)), **(off or {})}
        how = draw(THINKING)
        if how == "inline":
            message["content"] = f"<think>\n{draw(words(role))}\n</think>\n\n{message['content']}"
        elif how == "field":
            message["reasoning_content"] = draw(words(role))
        messages.append(message)
    if draw(st.sampled_from([False, False, False, True])):
        messages.append({"role": "user", "content": draw(words("user"))})
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {}}}}}]
    return messages, draw(st.sampled_from([None, None, tools]))


def check(source: str, messages: list[dict[str, Any]], tools: list[Any] | None) -> str:
    """Why the case is refused, or an empty text; asserts that no label is wrong."""
    try:
        ids, labels = conversation_labels(tokenizer(), messages, tools, chat_template=source)
    except DataError as error:
        return error.message.split("the chat template of ''")[-1][:30]
    assert len(ids) == len(labels)
    assert all(label in (-100, i) for i, label in zip(ids, labels, strict=True))
    pairs = zip(ids, labels, strict=True)
    pieces = [
        (k, tokenizer().decode([i for i, _ in group])) for k, group in groupby(pairs, lambda pair: pair[1] != -100)
    ]
    labelled = [text for keep, text in pieces if keep]
    trained, rest = "".join(labelled), "".join(text for keep, text in pieces if not keep)
    for role in ("system", "user", "tool", "untrained"):
        assert not set(LETTERS[role]) & set(trained), (role, trained)
        if role != "untrained":
            opened = [f"<|start|>{role}", f"<|start|>{role.upper()}", f"### {role}", f"### {role.upper()}"]
            assert not any(header in trained for header in opened), trained
    # Every letter of the assistant's that is in the text, and all its words but for its thoughts are.
    assert not set(LETTERS["assistant"]) & set(rest), rest
    said = "".join(message["content"].split("</think>")[-1] for message in messages if message["role"] == "assistant")
    for letter in LETTERS["assistant"]:
        assert trained.count(letter) >= said.count(letter)
    assert all(
        any(letter in text for letters in ("assistant", "call") for letter in LETTERS[letters]) for text in labelled
    )
    return ""


def run(cases: int, **options: Any) -> Counter[str]:
    """The number of cases by the beginning of the reason why they were refused; ``""`` where they were not."""
    seen: Counter[str] = Counter()

    # Two conversations for each template, as the templates take time to compile.
    @settings(max_examples=cases // 2, deadline=None, database=None, suppress_health_check=list(HealthCheck), **options)
    @given(source=templates(), cases=st.lists(conversations(), min_size=2, max_size=2))
    def one(source, cases):
        for messages, tools in cases:
            seen[check(source, messages, tools)] += 1

    one()
    assert seen[""] >= sum(seen.values()) / 4, "nearly everything is refused, so this shows little"
    return seen


def test_no_character_of_another_s_is_ever_labelled():
    run(200, derandomize=True)


@pytest.mark.study
def test_no_character_of_another_s_is_ever_labelled_in_ten_thousand_cases():
    seen = run(10_000)
    print(sum(seen.values()), "cases,", seen[""], "accepted;", seen.most_common(12))
