"""The headline of a run: one sentence on what was gained, lost and paid."""

from __future__ import annotations

from dataclasses import dataclass

from selfaug.report.facts import Run, Side
from selfaug.report.gains import Gain
from selfaug.report.numbers import duration, format_metric, percent, unit_label

__all__ = ["Number", "sentence"]


@dataclass(frozen=True)
class Number:
    """A number as shown, and its exact value."""

    text: str
    value: float


Words = list[str | Number]
_PLACES = {"task": "at the task", "general": "in general ability"}


def sentence(run: Run) -> Words:
    """``Gained 21.0 pt of f1 [+17.0, +25.0] at the task, lost 1.2 pt [−3.0, +0.5] (not clear) in general ability, ...``

    The sentence says so where nothing was measured.
    """
    words: Words = []
    for group in ("task", "general"):
        side = next((side for side in run.sides if side.group == group), None)
        words += [", "] if words else []
        words += [f"{_PLACES[group]} nothing is measured"] if side is None else _changed(side)
    if run.cost is not None and run.cost.seconds is not None:
        number, text, unit = duration(run.cost.seconds)
        words += [", in ", Number(text, number), f" {unit} of training"]
        share = run.cost.reference_share
        if share:
            words += [" with ", Number(percent(share), 100 * share), " % of the tokens in a reference pass"]
    first = words[0]
    assert isinstance(first, str)
    return [first[:1].upper() + first[1:], *words[1:], "."]


def _changed(side: Side) -> Words:
    words: Words = []
    for gain, direction, names in zip(side.gains, side.directions, side.names, strict=True):
        words += [" and "] if words else []
        of = f" of {names[0].rpartition(':')[2]}" if len(names) == 1 else ""
        if direction == "none":
            words += [f"neither gained nor lost {unit_label(gain.unit, difference=True)}{of}"]
        else:
            words += [f"{'lost' if gain.value < 0 else 'gained'} ", *_amount(gain, of)]
        if direction == "unclear":
            words += [" (not clear)"]
    return [*words, f" {_PLACES[side.group]}"]


def _amount(gain: Gain, of: str) -> Words:
    unit = unit_label(gain.unit, difference=True)
    words: Words = [Number(format_metric(abs(gain.value), gain.unit), abs(gain.value)), f" {unit}{of}"]
    if gain.low is not None and gain.high is not None:
        low, high = (Number(format_metric(end, gain.unit, signed=True), end) for end in (gain.low, gain.high))
        words += [" [", low, ", ", high, "]"]
    return words
