"""A check of a multiple-choice task's file, row by row, before lm_eval's templates read it.

A template that lacks a column fails without naming the row, or uses another value in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfaug.common.errors import DataError
from selfaug.common.files import json_lines, read_json, read_text

__all__ = ["TASK", "check_file"]

TASK = "multiple_choice_file"
_FORM = (
    'write {"question": "...", "options": [{"label": "A", "text": "..."}, ...], "answer": "A"}, or ARC\'s '
    '{"question": "...", "choices": {"label": ["A", ...], "text": ["...", ...]}, "answerKey": "A"}.'
)


def check_file(task: str, path: Path) -> None:
    """Check that a file holds rows of JSON, and for :data:`TASK` rows of its form.

    Args:
        task: lm_eval's name of the task.
        path: File with one JSON object a line, or with a JSON list of objects.

    Raises:
        DataError: If not; the message names the first unusable row and what is wrong with it.
    """
    rows = _rows(task, path)
    if not rows:
        raise DataError(f"general: {path} holds no row for task {task}", "give a JSONL file with a question a line.")
    for number, row in enumerate(rows, start=1):
        wrong = "it is no object" if not isinstance(row, dict) else _wrong(row) if task == TASK else None
        if wrong is not None:
            raise DataError(f"general: row {number} of {path} is no question of {task}: {wrong}", _FORM)


def _rows(task: str, path: Path) -> list[Any]:
    what, hint = f"general: task {task}:", "give a JSONL file, one object a line, in UTF-8."
    if path.suffix == ".json" and read_text(path, what, hint=hint).lstrip().startswith("["):
        return list(read_json(path, what, hint=hint))
    return [row for _, row in json_lines(path, what, hint=hint)]


def _wrong(row: Mapping[str, Any]) -> str | None:
    if not isinstance(row.get("question"), str) or not row["question"].strip():
        return f"question is {row.get('question')!r:.60}, not a text" if "question" in row else "it has no question"
    if row.get("options"):
        options, name = row["options"], "answer"
        good = isinstance(options, list) and all(
            isinstance(one, dict) and isinstance(one.get("text"), str) and isinstance(one.get("label"), str)
            for one in options
        )
        if not good:
            return f"options are {options!r:.80}, not a list of objects with a label and a text"
        labels = [one["label"] for one in options]
    elif row.get("choices"):
        choices, name = row["choices"], "answerKey"
        good = isinstance(choices, dict) and all(
            isinstance(choices.get(key), list) and all(isinstance(one, str) for one in choices[key])
            for key in ("label", "text")
        )
        if not good or len(choices["label"]) != len(choices["text"]):
            return f"choices are {choices!r:.80}, not lists of as many labels as texts"
        labels = choices["label"]
    else:
        return f"it has neither options nor choices, but {', '.join(map(str, row))}"
    if len(labels) < 2 or len(set(labels)) < len(labels):
        return f"its labels are {', '.join(labels)}: two or more are needed, each once"
    if row.get(name) not in labels:
        return f"{name} is {row.get(name)!r:.60}, which is none of the labels {', '.join(labels)}"
    return None
