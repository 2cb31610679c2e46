"""The length report: lengths of rows, and counts of what was left out or shortened to fit the limit."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from selfaug.data.lost_answers import LOST_HINT
from selfaug.data.reasons import WARN_ABOVE_SHARE, Reason, by_reason, reason_lines

__all__ = ["LeftOut", "LengthReport", "quantiles"]

_POINTS = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True)
class LeftOut:
    """A row that is not trained on.

    Args:
        row: Name of the row.
        reason: Reason for leaving it out.
        hint: Advice on how to keep it.
    """

    row: str
    reason: str
    hint: str = ""


def quantiles(values: ArrayLike) -> dict[str, float]:
    """Return minimum, 10 %, 50 %, 90 % and 99 % quantiles, maximum (all are elements) and mean; empty for no values."""
    ordered = np.sort(np.asarray(values, dtype=np.int64))
    if not len(ordered):
        return {}
    points = {name: float(ordered[round(point * (len(ordered) - 1))]) for name, point in _POINTS.items()}
    return points | {"mean": int(ordered.sum()) / len(ordered)}


def _counts() -> array[int]:
    return array("i")


@dataclass
class LengthReport:
    """Counts of rows, documents and tokens. Token counts are those of the kept rows after fitting.

    Args:
        max_length: Largest number of tokens of a row; ``None`` for no limit.
        rows: Number of rows before fitting.
        kept: Number of rows that are trained on.
        left_out: Rows that are not trained on.
        documents: Number of documents of the kept rows before fitting.
        documents_dropped: Number of these documents that are not in the prompts.
        shortened: Number of kept rows with a document that lost its end.
        prompts_cut: Number of kept rows whose prompt was cut from the left.
        answers_lost: Number of rows with an accepted answer in their documents or prompt, but not in what fits of
            them; includes those that were left out because of it.
        on_lost_answer: Treatment of these rows; see :func:`selfaug.data.encode.encode`.
        abstained: Number of these rows that are trained on the abstention text.
        escaped: Number of times that each special-token string was escaped in the texts of all rows.
        thoughts_dropped: Number of thoughts in kept rows that the chat template leaves out.
        thoughts_closed: Number of answers without a thought after a prompt that opens one; it is closed before them.
        thoughts_unprompted: Number of thoughts after a prompt that says that there is none.
        aligned_tokens: Number of positions of the kept rows that may be aligned.
        prompt_tokens: Number of prompt tokens of each kept row.
        response_tokens: Number of response tokens of each kept row.
        whole_tokens: Number of tokens of each kept row before fitting.
    """

    max_length: int | None
    rows: int = 0
    kept: int = 0
    left_out: list[LeftOut] = field(default_factory=list)
    documents: int = 0
    documents_dropped: int = 0
    shortened: int = 0
    prompts_cut: int = 0
    answers_lost: int = 0
    on_lost_answer: str = "keep"
    abstained: int = 0
    escaped: Counter[str] = field(default_factory=Counter)
    thoughts_dropped: int = 0
    thoughts_closed: int = 0
    thoughts_unprompted: int = 0
    aligned_tokens: int = 0
    prompt_tokens: array[int] = field(default_factory=_counts, repr=False)
    response_tokens: array[int] = field(default_factory=_counts, repr=False)
    whole_tokens: array[int] = field(default_factory=_counts, repr=False)

    @property
    def escaped_specials(self) -> int:
        """The number of special-token strings that were escaped."""
        return sum(self.escaped.values())

    @property
    def total_tokens(self) -> NDArray[np.int32]:
        """The number of tokens of each kept row."""
        return np.asarray(self.prompt_tokens, np.int32) + np.asarray(self.response_tokens, np.int32)

    def add(self, other: LengthReport) -> None:
        """Add the report of the rows that follow."""
        for entry in fields(self):
            if entry.name not in ("max_length", "on_lost_answer"):
                own, more = getattr(self, entry.name), getattr(other, entry.name)
                if isinstance(own, int):
                    setattr(self, entry.name, own + more)
                elif isinstance(own, Counter):
                    own.update(more)
                else:
                    own.extend(more)

    def quantiles(self) -> dict[str, dict[str, float]]:
        """Return quantiles of tokens per row: ``prompt``, ``response``, ``total``, and ``whole`` (before fitting)."""
        return {
            "prompt": quantiles(self.prompt_tokens),
            "response": quantiles(self.response_tokens),
            "total": quantiles(self.total_tokens),
            "whole": quantiles(self.whole_tokens),
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON: counts, quantiles, and the rows that were left out, by reason and one by one."""
        row = asdict(self)
        row["left_out"] = [{"row": item.row, "reason": item.reason} for item in self.left_out]
        row["left_out_by_reason"] = {reason.text: reason.count for reason in self._reasons()}
        row["warnings"] = [message for message, _ in self.warnings()]
        for name in ("prompt_tokens", "response_tokens", "whole_tokens"):
            del row[name]
        row["escaped"] = dict(sorted(self.escaped.items()))
        return row | {"escaped_specials": self.escaped_specials, "tokens_per_row": self.quantiles()}

    def lines(self) -> list[str]:
        """Return the report as lines for the user, without counts of 0."""
        limit = "no limit" if self.max_length is None else f"max_length {self.max_length}"
        lines = [f"{self.kept} of {self.rows} rows kept ({limit}), {self.aligned_tokens} aligned tokens"]
        for name, points in self.quantiles().items():
            if points and not (name == "whole" and np.array_equal(self.total_tokens, self.whole_tokens)):
                label = "before fitting" if name == "whole" else name
                lines.append(f"tokens, {label}: " + ", ".join(f"{key} {value:.0f}" for key, value in points.items()))
        if self.documents_dropped:
            lines.append(f"{self.documents_dropped} of {self.documents} documents dropped")
        for count, what in (
            (self.shortened, "have a shortened document"),
            (self.prompts_cut, "have a prompt cut from the left"),
            (self.answers_lost, f"have their answer only in what was dropped or cut off{self._became()}"),
        ):
            if count:
                lines.append(f"{count} rows {what}")
        for count, what in (
            (self.thoughts_dropped, "thoughts are left out by the chat template and not trained"),
            (
                self.thoughts_closed,
                "answers have no thought and follow a prompt that opens one: it is closed before them",
            ),
            (
                self.thoughts_unprompted,
                "thoughts are trained where the generation prompt says that there is none (enable_thinking?)",
            ),
        ):
            if count:
                lines.append(f"{count} {what}")
        if self.escaped:
            names = ", ".join(f"{text!r} {count}" for text, count in self.escaped.most_common(5))
            lines.append(f"{self.escaped_specials} special-token strings in the data made harmless: {names}")
        return lines + reason_lines([(item.reason, f"{item.row}: {item.reason}") for item in self.left_out], self.rows)

    def warnings(self) -> list[tuple[str, str]]:
        """Return pairs of a warning about what the user probably does not want, and a hint."""
        warnings = []
        if self.answers_lost and self.on_lost_answer == "keep":
            warnings.append(
                (
                    f"{self.answers_lost} of {self.rows} rows ({100 * self.answers_lost / self.rows:.0f} %) have their "
                    f"answer only in what was dropped to fit max_length={self.max_length}: the model is trained to "
                    "answer without what says so",
                    LOST_HINT,
                )
            )
        if len(self.left_out) > WARN_ABOVE_SHARE * self.rows:
            most = self._reasons()[0]
            hints = [item.hint for item in self.left_out if item.row == most.examples[0]]
            warnings.append(
                (
                    f"only {self.kept} of {self.rows} rows are left: {len(self.left_out)} "
                    f"({100 * len(self.left_out) / self.rows:.0f} %) are left out, {most.count} of them because: "
                    f"{most.text}",
                    hints[0],
                )
            )
        return warnings

    def _reasons(self) -> list[Reason]:
        return by_reason((item.reason, item.row) for item in self.left_out)

    def _became(self) -> str:
        if self.on_lost_answer == "skip":
            return ", and are left out"
        return f"; {self.abstained} of them are trained to abstain" if self.on_lost_answer == "abstain" else ""
