"""Which answers became worse, and which words of them changed?"""

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
"""Characters of an answer that are shown."""
_WORD = re.compile(r"\s*\S+\s*|\s+")

Piece = tuple[Literal["same", "removed", "added"], str]


@dataclass(frozen=True)
class Regression:
    """One item whose value fell.

    Args:
        id: Of the item.
        question: Empty where the task has none.
        expected: Accepted answers.
        prompt: As both models saw it, shortened in its middle.
        base_response: What the base said; ``None`` where the task lets models choose and not write.
        tuned_response: What the tuned model said.
        base: Value of the part's primary metric.
        tuned: The same of the tuned model.
        base_cut: Whether the base's answer ended at the limit of tokens, not by itself.
        tuned_cut: The same of the tuned model's.
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
    """The regressions of a part: how many items became worse and how many better, and the worst ones first."""

    part: str
    metric: str
    unit: str
    items: int
    worse: int
    better: int
    shown: tuple[Regression, ...]


def read_worst(path: str | Path, metrics: Iterable[Measured], limit: int) -> list[Worst]:
    """The worst regressions of each part by its primary metric; of equal ones the first in the data.

    Args:
        path: ``samples.jsonl``.
        metrics: Of the same run's ``results.json``.
        limit: Regressions of a part.

    Raises:
        DataError: If the file is missing or damaged.
    """
    path = Path(path)
    chosen = {one.part: one for one in metrics if one.primary and one.subtask is None}
    found: dict[str, list[tuple[float, dict[str, Any]]]] = {part: [] for part in chosen}
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
            found[one.part].append((gain, sample | {"_values": (base, tuned)}))
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"{path}, line {number}, is damaged: {error!r}", AGAIN) from None
    worst = []
    for part, items in found.items():
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
        texts = [None, None]  # a plain text is read and not answered
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
    """Both texts cut into pieces, by words: what the other has too, and what only this one has.

    Joined, the pieces of each are the text itself, shortened to ``LONGEST`` characters.
    """
    # A word keeps the space around it, or the matcher would find nothing but spaces in common.
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
    """The text, or its beginning and how much is missing."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST].rstrip()} … ({len(text) - LONGEST:,} more characters)"
