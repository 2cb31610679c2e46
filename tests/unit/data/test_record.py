"""Which rows are records and conversations, and what does an error say of the others?"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfaug.common.errors import DataError
from selfaug.data.record import (
    Conversation,
    Document,
    Record,
    RowError,
    Where,
    is_trained,
    parse_conversation,
    parse_record,
)

HERE = Where("data.jsonl", 7)
GOOD: dict[str, Any] = {
    "question": "Who?",
    "documents": [{"title": "T", "text": "Ann did.", "id": "d1", "score": 2}],
    "answer": ["Ann", "Ann Lee"],
    "id": 12,
    "system": "Be brief.",
}

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(lambda t: bool(t.strip()))
finite = st.floats(allow_nan=False, allow_infinity=False)
documents = st.builds(
    Document,
    text=text,
    title=st.none() | text,
    id=st.none() | text,
    score=st.none() | finite,
    gold=st.none() | st.booleans(),
)


def with_field(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    row = json.loads(json.dumps(GOOD))
    target = row
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return row


def test_every_field_is_read() -> None:
    assert parse_record(GOOD, HERE) == Record(
        question="Who?",
        documents=(Document("Ann did.", "T", "d1", 2.0),),
        answers=("Ann", "Ann Lee"),
        id="12",
        system="Be brief.",
        answerable=True,
    )


@pytest.mark.parametrize(
    ("path", "value", "field", "expected", "received"),
    [
        (("question",), "  ", "question", "non-empty text", "'  '"),
        (("question",), 3, "question", "non-empty text", "3"),
        (("question",), "\ud800", "question", "text that UTF-8 can write", "ud800"),
        (("answer",), "", "answer", "non-empty text", "''"),
        (("answer",), ["Ann", ""], "answer[1]", "non-empty text", "''"),
        (("answer",), True, "answer", "text or a list of texts", "True"),
        (("answer",), [], "answer", "a text or a list of accepted texts", "[]"),
        (("answer",), None, "answer", "a text or a list of accepted texts", "None"),
        (("documents",), None, "documents", "at least one document", "None"),
        (("documents",), [], "documents", "at least one document", "[]"),
        (("documents",), 5, "documents", "a list of texts, or objects with a text", "5"),
        (("documents", 0), 5, "documents[0]", "a text, or an object with a text", "5"),
        (("documents", 0, "text"), "\n", "documents[0].text", "non-empty text", "'\\n'"),
        (("documents", 0, "title"), 5, "documents[0].title", "text", "5"),
        (("documents", 0, "score"), math.nan, "documents[0].score", "a finite number", "nan"),
        (("documents", 0, "score"), True, "documents[0].score", "a finite number", "True"),
        (("documents", 0, "score"), "high", "documents[0].score", "a finite number", "'high'"),
        (("documents", 0, "score"), 10**400, "documents[0].score", "a finite number", "1000"),
        (("id",), True, "id", "text or an integer", "True"),
        (("id",), 1.5, "id", "text or an integer", "1.5"),
        (("answerable",), 2, "answerable", "true or false", "2"),
        (("system",), [], "system", "text", "[]"),
    ],
)
def test_a_bad_field_is_named(path: tuple[Any, ...], value: Any, field: str, expected: str, received: str) -> None:
    assert parse_record(GOOD, HERE)  # The row is good but for this field.
    row = with_field(path, value) if not isinstance(value, float | str) else {**with_field(path, 0)}
    target = row
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(RowError) as caught:
        parse_record(row, HERE)
    error = caught.value
    assert isinstance(error, DataError)
    assert error.field == field
    assert f"data.jsonl, line 7, field {field!r}: expected {expected}" in error.message
    assert received in error.received
    assert "--on_bad_row skip" in error.hint


def test_a_missing_field_names_the_near_key() -> None:
    row = {key: value for key, value in GOOD.items() if key != "answer"} | {"answers": ["Ann"]}
    with pytest.raises(RowError, match=r"field 'answer'.*received nothing\. Did you mean 'answers'"):
        parse_record(row, HERE)


def test_what_was_received_is_cut_short() -> None:
    with pytest.raises(RowError) as caught:
        parse_record({**GOOD, "question": ["x" * 10_000] * 1_000}, HERE)
    assert len(caught.value.message) < 400


def test_unknown_keys_are_ignored_and_null_is_absent() -> None:
    row = {**GOOD, "color": object(), "system": None, "answerable": None, "id": None}
    record = parse_record(row, HERE)
    assert (record.system, record.id, record.answerable) == (None, None, True)


def test_an_unanswerable_record_needs_no_answer_but_keeps_one() -> None:
    without = {key: value for key, value in GOOD.items() if key != "answer"}
    with pytest.raises(RowError):
        parse_record(without, HERE)
    assert parse_record({**without, "answerable": False}, HERE).answers == ()
    assert parse_record({**GOOD, "answerable": False}, HERE).answers == ("Ann", "Ann Lee")


def test_documents_may_be_missing_where_a_corpus_fills_them() -> None:
    row = {key: value for key, value in GOOD.items() if key != "documents"}
    with pytest.raises(RowError, match="--corpus"):
        parse_record(row, HERE)
    assert parse_record(row, HERE, needs_documents=False).documents == ()


def test_a_record_that_cannot_be_trained_cannot_be_built() -> None:
    with pytest.raises(DataError, match="question is empty"):
        Record(" ", (), ("a",))
    with pytest.raises(DataError, match="no answers"):
        Record("q", ())
    assert Record("q", (), answerable=False).answers == ()


@given(
    st.builds(
        Record,
        question=text,
        documents=st.lists(documents, min_size=1, max_size=3).map(tuple),
        answers=st.lists(text, min_size=1, max_size=3, unique=True).map(tuple),
        id=st.none() | text,
        system=st.none() | text,
        answerable=st.booleans(),
    )
)
def test_a_record_comes_back_from_its_row(record: Record) -> None:
    assert parse_record(json.loads(json.dumps(record.to_row())), HERE) == record


MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def test_a_conversation_comes_back_from_its_row() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
    given_row = {"id": "c", "messages": [*MESSAGES, call], "tools": tools, "documents": [{"text": "d"}]}
    conversation = parse_conversation(given_row, HERE)
    assert conversation == Conversation((*MESSAGES, call), (Document("d"),), "c", tuple(tools))
    assert parse_conversation(conversation.to_row(), HERE) == conversation
    assert conversation.to_row() == given_row


def test_parts_of_text_are_joined_tools_may_be_json_text_and_null_keys_go() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    row = {
        "messages": [{"role": "user", "content": parts, "tool_calls": None}, MESSAGES[1]],
        "tools": '[{"name": "f"}]',
    }
    conversation = parse_conversation(row, HERE)
    assert conversation.messages[0] == {"role": "user", "content": "ab"}
    assert conversation.tools == ({"name": "f"},)


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [MESSAGES[0]]}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"content": "x"}, MESSAGES[1]]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 4}, MESSAGES[1]]}, "messages[0].content"),
        ({"messages": [MESSAGES[0], {"role": "assistant", "content": " "}]}, "messages[1].content"),
        ({"messages": [MESSAGES[0], {"role": "assistant", "content": None}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, MESSAGES[1]]}, "messages[0].content[0].type"),
        ({"messages": [{**MESSAGES[0], "extra": math.nan}, MESSAGES[1]]}, "messages[0].extra"),
        ({"messages": MESSAGES, "tools": "{"}, "tools"),
        ({"messages": MESSAGES, "tools": '[{"a": NaN}]'}, "tools"),
        ({"messages": MESSAGES, "tools": [1]}, "tools"),
        ({"messages": MESSAGES, "documents": [{}]}, "documents[0].text"),
    ],
)
def test_a_bad_conversation_names_its_field(row: dict[str, Any], field: str) -> None:
    assert parse_conversation({"messages": MESSAGES}, HERE)
    with pytest.raises(RowError) as caught:
        parse_conversation(row, HERE)
    assert caught.value.field == field


def turns(*flags: dict[str, Any]) -> dict[str, Any]:
    """A conversation of one question and answer for each of ``flags``, which the answers carry."""
    messages: list[dict[str, Any]] = []
    for flag in flags:
        messages += [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann", **flag}]
    return {"messages": messages}


@pytest.mark.parametrize(
    "flag", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"training": False}, {"loss": False}]
)
def test_a_flag_against_a_message_is_kept_and_followed(flag: dict[str, Any]) -> None:
    conversation = parse_conversation(turns(flag, {}, {"weight": None}, {"weight": 1}), HERE)
    assert [is_trained(m) for m in conversation.messages[1::2]] == [False, True, True, True]
    assert parse_conversation(conversation.to_row(), HERE) == conversation


@pytest.mark.parametrize("flag", [{"weight": 0}, {"train": False}])
def test_a_conversation_of_which_nothing_is_trained_is_named(flag: dict[str, Any]) -> None:
    with pytest.raises(RowError, match="an assistant message that is trained") as caught:
        parse_conversation(turns(flag, flag), HERE)
    assert caught.value.field == "messages"


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ({"weight": 0.5}, "0 (not trained) or 1 (trained)"),
        ({"weight": 2}, "0 (not trained) or 1 (trained)"),
        ({"weight": -1}, "0 (not trained) or 1 (trained)"),
        ({"weight": "0"}, "0 (not trained) or 1 (trained)"),
        ({"train": "false"}, "true (trained) or false (not trained)"),
        ({"loss": 0.3}, "true (trained) or false (not trained)"),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 3, "train": True}]}, "no such field"),
        ({"loss_scale": 0.5}, "no such field"),
    ],
)
def test_a_flag_that_cannot_be_followed_is_named(flag: dict[str, Any], expected: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_conversation(turns({}, flag), HERE)
    assert caught.value.field == f"messages[3].{next(iter(flag))}"
    assert expected in caught.value.expected


def test_a_flag_that_asks_to_train_the_user_is_named_and_one_against_it_is_nothing_new() -> None:
    row = turns({})
    row["messages"][0]["weight"] = 0
    assert parse_conversation(row, HERE).messages[0]["weight"] == 0
    row["messages"][0]["weight"] = 1
    with pytest.raises(RowError, match="only the assistant's are trained"):
        parse_conversation(row, HERE)
