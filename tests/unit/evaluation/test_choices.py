from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from selfaug.common.errors import DataError
from selfaug.evaluation.choices import TASK, check_file

OPTIONS = {"question": "q", "options": [{"label": "A", "text": "x"}, {"label": "B", "text": "y"}], "answer": "B"}
ARC = {"question": "q", "choices": {"label": ["1", "2"], "text": ["x", "y"]}, "answerKey": "2"}
OTHER: dict[str, tuple[Any, str]] = {
    "texts": (OPTIONS | {"options": ["Paris", "Rome"]}, "options are"),
    "by letter": (OPTIONS | {"options": {"A": "Paris", "B": "Rome"}}, "options are"),
    "no text": (OPTIONS | {"options": [{"label": "A"}, {"label": "B"}]}, "options are"),
    "texts of choices": ({"question": "q", "choices": ["Paris", "Rome"], "answer": 0}, "choices are"),
    "fewer labels": (ARC | {"choices": {"label": ["1"], "text": ["x", "y"]}}, "as many labels"),
    "one choice": (OPTIONS | {"options": [{"label": "A", "text": "x"}], "answer": "A"}, "two or more"),
    "a label twice": (OPTIONS | {"options": [{"label": "B", "text": "x"}] * 2}, "each once"),
    "no such label": (OPTIONS | {"answer": "C"}, "'C'"),
    "answer by number": (OPTIONS | {"answer": 1}, "answer is 1"),
    "no answer": ({name: value for name, value in ARC.items() if name != "answerKey"}, "answerKey is None"),
    "no question": ({"options": OPTIONS["options"], "answer": "A"}, "no question"),
    "other columns": ({"question": "q", "distractors": ["x"], "answer": "A"}, "distractors"),
    "no object": (["q", "a"], "no object"),
}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_both_forms_are_taken(tmp_path: Path) -> None:
    check_file(TASK, write(tmp_path / "a.jsonl", OPTIONS, ARC))
    (tmp_path / "b.json").write_text(json.dumps([OPTIONS, ARC]), encoding="utf-8")
    check_file(TASK, tmp_path / "b.json")


@pytest.mark.parametrize("case", OTHER)
def test_other_forms_are_refused_by_row(tmp_path: Path, case: str) -> None:
    row, says = OTHER[case]
    with pytest.raises(DataError, match="row 2 of ") as refused:
        check_file(TASK, write(tmp_path / "a.jsonl", OPTIONS, row))
    assert says in refused.value.message
    if isinstance(row, dict):  # another task has columns of its own, which its own templates know
        check_file("another_task", write(tmp_path / "a.jsonl", OPTIONS, row))


@pytest.mark.parametrize(("text", "says"), [("", "no row"), ('{"question": ', "line 1"), ("\n\nx\n", "line 3")])
def test_files_that_hold_no_rows(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=says):
        check_file("another_task", tmp_path / "a.jsonl")
