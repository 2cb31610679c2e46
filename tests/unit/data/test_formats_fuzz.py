"""Whatever a file holds: is the outcome always records or an error with a hint, and is nothing lost uncounted?"""

from __future__ import annotations

import bz2
import gzip
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfaug.common.errors import DataError
from selfaug.data.formats import FORMATS, mapped
from selfaug.data.read import read_rows
from selfaug.data.record import Conversation, Record, RowError, Where, parse_conversation, parse_record
from tests.unit.data.samples import ROWS, format_of

# All characters, lone surrogates among them; NaN and infinities, which Python's json writes and reads.
any_text = st.text(st.characters(), max_size=8)
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
)
outcomes: Counter[str] = Counter()


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, itself first."""
    found = [path]
    if isinstance(value, dict):
        found += [p for key, inner in value.items() for p in places(inner, (*path, key))]
    elif isinstance(value, list):
        found += [p for i, inner in enumerate(value) for p in places(inner, (*path, i))]
    return found


@st.composite
def mutated_rows(draw: st.DrawFn) -> tuple[str, Any]:
    sample = draw(st.sampled_from(sorted(ROWS)))
    row = json.loads(json.dumps(ROWS[sample]))
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(places(row)[1:] or [()]))
        if not path:
            continue
        target = row
        for key in path[:-1]:
            target = target[key]
        if draw(st.booleans()):
            target[path[-1]] = draw(any_json)
        elif isinstance(target, dict):
            del target[path[-1]]
            if draw(st.booleans()):
                target[draw(any_text)] = draw(any_json)
    return format_of(sample), row


def check_item(item: Any, *, needs_documents: bool = True) -> None:
    """An item is trainable, and comes back from what is written of it."""
    if isinstance(item, Record):
        assert item.question.strip()
        assert item.documents or not needs_documents
        assert item.answers or not item.answerable
        written = json.dumps(item.to_row(), allow_nan=False, ensure_ascii=False).encode()
        assert parse_record(json.loads(written), Where("f", 1), needs_documents=needs_documents) == item
    elif isinstance(item, Conversation):
        written = json.dumps(item.to_row(), allow_nan=False, ensure_ascii=False).encode()
        assert parse_conversation(json.loads(written), Where("f", 1)) == item
    else:
        assert isinstance(item, dict)
        json.dumps(item, allow_nan=False, ensure_ascii=False).encode()


def check_error(error: DataError) -> None:
    """An error says what to do, fits on a screen and can be printed."""
    assert error.hint
    assert len(error.message) < 1000
    error.message.encode()


@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutated_rows())
def test_a_mutated_row_is_a_record_or_a_row_error(case: tuple[str, Any]) -> None:
    name, row = case
    found = FORMATS[name]
    for where, part in found.expand(row, Where("f", 1)):
        try:
            if isinstance(part, RowError):
                raise part
            check_item(found.parse(part, where, True))
            outcomes["record"] += 1
        except RowError as error:
            check_error(error)
            outcomes["error"] += 1


MAPS = (
    {"question": "question", "documents": "context", "answer": "answer"},
    {
        "question": "query + question",
        "documents": "passages[].text",
        "documents.title": "passages[].title",
        "answer": "a",
    },
    {"documents": "documents.split(a)", "documents.relevant": "supporting_facts[][0]", "answerable": "!is_impossible"},
    {"documents": "context[0].x", "history": "conversations", "documents.score": "documents[].score"},
    {"messages": "conversations"},
    {"prompt": "question", "completion": "answer"},
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutated_rows().map(lambda case: case[1]), st.sampled_from(MAPS))
def test_a_map_over_any_row_is_an_example_or_a_data_error(row: dict[str, Any], paths: dict[str, str]) -> None:
    try:
        check_item(mapped(paths).bound([row]).parse(row, Where("f", 1), False), needs_documents=False)
    except DataError as error:
        check_error(error)


def test_the_mutations_reached_both_outcomes() -> None:
    """Without this the test above could pass on rows that are all refused, or all accepted."""
    test_a_mutated_row_is_a_record_or_a_row_error()
    assert outcomes["record"] > 200
    assert outcomes["error"] > 200


@st.composite
def broken_files(draw: st.DrawFn) -> tuple[str, bytes, int]:
    """A file name, its bytes, and how many of its lines are not blank where it is a whole line file (else -1)."""
    suffix = draw(st.sampled_from([".jsonl", ".json", ".jsonl.gz", ".bz2", ".parquet", ".tsv", ".csv", ""]))
    if draw(st.integers(0, 3)) == 0:
        return f"d{suffix}", draw(st.binary(max_size=200)), -1
    rows = draw(st.lists(mutated_rows().map(lambda case: case[1]) | any_json, min_size=1, max_size=5))
    if suffix == ".json":
        content = json.dumps(rows).encode()
    else:
        content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    lines = len(rows) if suffix in (".jsonl", ".jsonl.gz", ".bz2") else -1
    packed = {".jsonl.gz": gzip.compress, ".bz2": bz2.compress}.get(suffix, lambda b: b)(content)
    harm = draw(st.sampled_from(["none", "cut", "flip"]))
    if harm != "none":
        at, lines = draw(st.integers(0, len(packed) - 1)), -1
        packed = packed[:at] if harm == "cut" else packed[:at] + bytes([draw(st.integers(0, 255))]) + packed[at + 1 :]
    return f"d{suffix}", packed, lines


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(broken_files(), st.sampled_from(["auto", *FORMATS]))
def test_a_broken_file_is_records_or_a_data_error(case: tuple[str, bytes, int], format_: str) -> None:
    name, content, lines = case
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        (Path(folder) / "d.ans").write_bytes(b"A\tB\tC\tD\n")
        try:
            loaded = read_rows(path, format=format_, on_bad_row="skip")
        except DataError as error:
            check_error(error)
            return
        for item in loaded.items:
            check_item(item)
        several = ("squad", "quac", "coqa")  # An article or a dialogue holds any number of questions.
        if lines >= 0 and loaded.format not in several:
            assert len(loaded.items) + len(loaded.problems) == lines
        if loaded.problems:
            with pytest.raises(RowError):
                read_rows(path, format=format_)
        else:
            assert read_rows(path, format=format_).items == loaded.items


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_parquet_file_is_records_or_a_data_error(data: st.DataObject) -> None:
    import pyarrow
    import pyarrow.parquet

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "d.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ROWS["canonical"]] * 3), path)
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(0, 5))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(bytes(content[: data.draw(st.integers(1, len(content)))]))
        try:
            for item in read_rows(path, on_bad_row="skip").items:
                check_item(item)
        except DataError as error:
            check_error(error)
