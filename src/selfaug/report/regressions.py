"""Regressions: answers that became worse, and the words in which they differ."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from selfaug.common.errors import DataError
from selfaug.common.files import json_lines
from selfaug.evaluation.results import AGAIN
from selfaug.report.gains import Measured

__all__ = ["LONGEST", "Piece", "Regression", "Worst", "marked", "read_worst", "shortened"]

LONGEST = 1500
"""Number of characters of an answer that are shown."""
_WORD = re.compile(r"\s*\S+\s*|\s+")

Piece = tuple[Literal["same", "removed", "added"], str]


@dataclass(frozen=True)
class Regression:
    """An item on which the tuned model is worse than the base.

    Args:
        id: Identifier of the item.
        question: Question; empty where the task has none.
        expected: Accepted answers.
        prompt: Prompt of both models, shortened in its middle.
        base_response: Answer of the base; ``None`` for multiple choice.
        tuned_response: Answer of the tuned model; ``None`` for multiple choice.
        base: Value of the part's primary metric for the base.
        tuned: Value of the same metric for the tuned model.
        base_cut: Whether the base's answer was cut at the token limit.
        tuned_cut: Whether the tuned model's answer was cut at the token limit.
    """

    id: str
    question: str
    expected: tuple[str, ...]
    prompt: str
    base_response: str | None
    tuned_response: str | None
    base: float
    tuned: float
    base_cut: bool = False
    tuned_cut: bool = False


@dataclass(frozen=True)
class Worst:
    """The regressions of a part: numbers of items, and the worst ones in ``shown``, the worst first."""

    part: str
    metric: str
    unit: str
    items: int
    worse: int
    better: int
    shown: tuple[Regression, ...]


def read_worst(path: str | Path, metrics: Iterable[Measured], limit: int) -> list[Worst]:
    """Return the worst regressions of each part by its primary metric; equal ones in the order of the data.

    Args:
        path: Path of ``samples.jsonl``.
        metrics: Metrics of the same run's ``results.json``.
        limit: Largest number of regressions of a part.

    Raises:
        DataError: If the file is missing or damaged.
    """
    path = Path(path)
    chosen = {one.part: one for one in metrics if one.primary and one.subtask is None}
    by_part: dict[str, list[tuple[float, dict[str, Any]]]] = {part: [] for part in chosen}
    number = 0
    try:
        for number, sample in json_lines(path, hint=AGAIN):  # noqa: B007
            one = chosen.get(sample["part"])
            if one is None:
                continue
            base, tuned = (_value(sample[side]["values"].get(one.metric)) for side in ("base", "tuned"))
            if base is None or tuned is None:
                continue
            gain = (tuned - base) * (1 if one.entry["higher_is_better"] else -1)
            by_part[one.part].append((gain, sample | {"_values": (base, tuned)}))
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"{path}, line {number}, is damaged: {error!r}", AGAIN) from None
    worst = []
    for part, items in by_part.items():
        falls = sorted((item for item in items if item[0] < 0), key=lambda item: item[0])
        shown = tuple(_regression(sample) for _, sample in falls[:limit])
        better, one = sum(gain > 0 for gain, _ in items), chosen[part]
        if items:
            worst.append(Worst(part, one.metric, one.unit, len(items), len(falls), better, shown))
    return worst


def _value(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, Sequence):
        return float(value[0]) / float(value[1]) if value[1] else None
    return float(value)


def _regression(sample: Mapping[str, Any]) -> Regression:
    expected = sample.get("expected")
    accepted = expected if isinstance(expected, list) else [] if expected is None else [expected]
    if sample.get("answerable") is False and not accepted:
        accepted = ["(no answer: the documents do not hold it)"]
    base, tuned = sample["_values"]
    responses = [sample[side].get("response") for side in ("base", "tuned")]
    texts = [None if response is None else str(response) for response in responses]
    if not any(texts) and not accepted:
        texts = [None, None]  # a plain text has no answer
    return Regression(
        id=str(sample.get("id", sample.get("index", ""))),
        question=str(sample.get("question") or ""),
        expected=tuple(str(one) for one in accepted),
        prompt=str(sample.get("prompt") or ""),
        base_response=texts[0],
        tuned_response=texts[1],
        base=base,
        tuned=tuned,
        base_cut=bool(sample["base"].get("cut")),
        tuned_cut=bool(sample["tuned"].get("cut")),
    )


def marked(base: str, tuned: str) -> tuple[list[Piece], list[Piece]]:
    """Cut both texts by words into pieces that they share and pieces that only one of them has.

    The pieces of each join to the text, shortened to ``LONGEST`` characters.
    """
    # Words keep the space around them: single spaces would be matched as common words.
    before, after = (_WORD.findall(shortened(text)) for text in (base, tuned))
    plain = [[word.strip() for word in words] for words in (before, after)]
    left: list[Piece] = []
    right: list[Piece] = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, plain[0], plain[1], autojunk=False).get_opcodes():
        if kind == "equal":
            left.append(("same", "".join(before[i:j])))
            right.append(("same", "".join(after[k:m])))
            continue
        if i < j:
            left.append(("removed", "".join(before[i:j])))
        if k < m:
            right.append(("added", "".join(after[k:m])))
    return left, right


def shortened(text: str) -> str:
    """Return the text, or its beginning and the number of omitted characters."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST].rstrip()} … ({len(text) - LONGEST:,} more characters)"
