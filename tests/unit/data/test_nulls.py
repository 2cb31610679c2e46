"""Does a row mean the same from a table as from lines, and do lines say exactly what they say?"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, Features, Json, load_from_disk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfaug.data.read import read_rows, read_table
from selfaug.data.record import Conversation
from selfaug.data.tables import trl_table

# Names of few letters meet in most examples, each with one type of value, since a table has one for each column.
DIGIT = st.integers(0, 9)
SCALARS = {"a": st.text("xyz", min_size=1), "b": DIGIT, "c": st.booleans(), "d": st.none() | DIGIT}


def objects(depth: int) -> st.SearchStrategy[dict[str, Any]]:
    optional: dict[str, Any] = dict(SCALARS)
    if depth:
        optional["e"] = st.none() | objects(depth - 1)
        optional["f"] = st.lists(objects(depth - 1), max_size=2)
        optional["g"] = st.lists(st.none() | DIGIT, max_size=3)
    return st.fixed_dictionaries({}, optional=optional)


arguments = objects(2)
tools = st.builds(
    lambda properties, required: {
        "type": "function",
        "function": {"name": "w", "parameters": {"type": "object", "properties": properties, "required": required}},
    },
    objects(2),
    st.lists(st.sampled_from("ab"), max_size=2),
)
rows = st.builds(
    lambda given, tool: {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "w", "arguments": given}}]},
        ],
        "tools": [tool],
    },
    arguments,
    tools,
)


def without_nulls(value: Any) -> Any:
    """The oracle: no key of any object is null."""
    if isinstance(value, dict):
        kept = {}
        for key in value:
            if value[key] is not None:
                kept[key] = without_nulls(value[key])
        return kept
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def parts(items: list[Any]) -> list[Any]:
    found = []
    for item in items:
        assert isinstance(item, Conversation)
        found.append([item.messages[1]["tool_calls"][0]["function"]["arguments"], list(item.tools or ())])
    return found


def meant(given_rows: list[dict[str, Any]]) -> list[Any]:
    return [[row["messages"][1]["tool_calls"][0]["function"]["arguments"], row["tools"]] for row in given_rows]


def from_parquet(given_rows: list[dict[str, Any]], folder: Path) -> list[Any]:
    try:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(given_rows), folder / "d.parquet")
    except pyarrow.ArrowNotImplementedError:  # Parquet has no objects without any key.
        return parts(read_table(Dataset.from_list(given_rows), "d").items)
    return parts(read_rows(folder / "d.parquet").items)


def from_saved(given_rows: list[dict[str, Any]], folder: Path) -> list[Any]:
    Dataset.from_list(given_rows).save_to_disk(str(folder / "d"))
    assert len(load_from_disk(str(folder / "d"))) == len(given_rows)
    return parts(read_rows(folder / "d").items)


@pytest.mark.parametrize("through", [from_parquet, from_saved])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(given_rows=st.lists(rows, min_size=1, max_size=3))
def test_a_table_gives_the_lines_without_their_nulls(
    through: Callable[[list[dict[str, Any]], Path], list[Any]], given_rows: list[dict[str, Any]]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given_rows), "utf-8")
        assert parts(read_rows(folder / "d.jsonl").items) == meant(given_rows)  # lines say what they say
        assert through(given_rows, folder) == without_nulls(meant(given_rows))


def test_the_situation_is_real(tmp_path: Path) -> None:
    """A table does put nulls into objects, and they come back where nobody takes them out."""
    row = {"messages": [], "arguments": {"city": "Rome"}}
    table = Dataset.from_list([row, {**row, "arguments": {"zone": 3}}])
    assert table[0]["arguments"] == {"city": "Rome", "zone": None}


@settings(max_examples=30, deadline=None)
@given(st.lists(rows, min_size=1, max_size=3))
def test_trl_rows_of_lines_keep_their_nulls_and_gain_none(given_rows: list[dict[str, Any]]) -> None:
    pairs = [{"prompt": r["messages"][:1], "completion": r["messages"][1:], "tools": r["tools"]} for r in given_rows]
    assert list(trl_table(pairs)) == pairs


def test_texts_that_look_like_json_stay_texts() -> None:
    pairs = [{"prompt": "1", "completion": "[2]"}, {"prompt": "null", "completion": '{"a": 1}'}]
    assert list(trl_table(pairs)) == pairs


def test_what_a_table_keeps_as_json_is_left_as_it_is(tmp_path: Path) -> None:
    row = {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        "tools": [{"name": "w", "parameters": {"default": None}}],
    }
    plain = Dataset.from_list([{"messages": row["messages"]}])
    table = Dataset.from_list([row], features=Features({**plain.features, "tools": Json()}))
    (item,) = read_table(table, "d").items
    assert isinstance(item, Conversation)
    assert list(item.tools or ()) == row["tools"]
    table.to_parquet(str(tmp_path / "d.parquet"))
    (item,) = read_rows(tmp_path / "d.parquet").items
    assert isinstance(item, Conversation)
    assert list(item.tools or ()) == row["tools"]
