"""Gains of metrics with their intervals, positive where the tuned model is better.

    gain = tuned - base where higher is better, base - tuned where lower is better

Several metrics are averaged as ``Σ gain / k``. The bounds of the mean follow from those of its members by the method of
variance estimates recovery (Zou and Donner 2008), which keeps skew: ``low = mean - sqrt(Σ (gain - low)²) / k``. It
assumes that the members are independent, as parts with different items are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from selfaug.common.flips import Flips

__all__ = ["POINT_UNITS", "Gain", "Measured", "mean_gain", "measured"]

POINT_UNITS = {"fraction": 1.0, "score": 2.0}
"""Units that are shown in points (hundredths), with the width of an item's range: 0 to 1, and -1 to 1."""


@dataclass(frozen=True)
class Gain:
    """A gain and its bounds; negative for a loss.

    Args:
        value: Gain in ``unit``.
        low: Lower bound; ``None`` without an interval.
        high: Upper bound; ``None`` without an interval.
        unit: ``fraction``, ``score``, ``nats/token``, or the unit of a metric that counts.
        base: Value of the base model, averaged over the members.
        n: Number of items, the smallest over the members.
        members: Number of metrics that are averaged.
        because: Reason for a missing interval.
    """

    value: float
    low: float | None
    high: float | None
    unit: str
    base: float
    n: int
    members: int = 1
    because: str | None = None

    @property
    def direction(self) -> str:
        """``gain`` or ``loss`` if the bounds exclude 0, ``none`` if both are 0, else ``unclear``."""
        if self.low is None or self.high is None:
            return "unclear"
        if self.low == self.high == 0:
            return "none"
        return "gain" if self.low > 0 else "loss" if self.high < 0 else "unclear"


@dataclass(frozen=True)
class Measured:
    """One metric of one part of ``results.json``.

    Args:
        part: Key of the part, such as ``general:arc_challenge``.
        name: Name of the part, such as ``arc_challenge``.
        group: ``task`` or ``general``.
        subtask: Subtask of a group such as MMLU; ``None`` for the whole part.
        metric: Name of the metric.
        primary: Whether it is the part's primary metric.
        entry: Entry in the format of ``docs/results-format.md``.
    """

    part: str
    name: str
    group: str
    subtask: str | None
    metric: str
    primary: bool
    entry: Mapping[str, Any]

    @property
    def unit(self) -> str:
        """Unit of the metric."""
        return str(self.entry["unit"])

    @property
    def flips(self) -> Flips | None:
        """Items that went from right to wrong and back; ``None`` where items are neither, or for older results."""
        entry = self.entry.get("flips")
        return None if entry is None else Flips(int(entry["lost"]), int(entry["gained"]), int(entry["n"]))

    @property
    def gain(self) -> Gain | None:
        """Gain with the measured interval; ``None`` if base and tuned were not compared."""
        difference = self.entry["difference"]
        if difference is None:
            return None
        sign = 1.0 if self.entry["higher_is_better"] else -1.0
        low = high = None
        # 0.0 + x turns -0.0 into 0.0.
        if difference["interval"] is not None:
            low, high = sorted(0.0 + sign * float(end) for end in difference["interval"])
        base, because = float(self.entry["base"]["value"]), difference.get("no_interval_because")
        return Gain(0.0 + sign * difference["value"], low, high, self.unit, base, int(difference["n"]), because=because)

    @property
    def conservative(self) -> Gain | None:
        """Gain with an interval that is valid for few items.

        A bootstrap of few items is too narrow, and of items without any change it has no width. So the interval is the
        widest of the bootstrap's, Student's, and for metrics with a known range the effect of a change of a share
        ``1 - 0.025^(1/n)`` of all items, which n items miss with a probability of 1 in 40.
        """
        gain = self.gain
        if gain is None or gain.low is None or gain.high is None:
            return gain
        if gain.n < 2:
            return replace(gain, low=None, high=None, because="too few items count")
        from scipy.stats import t as student  # type: ignore[import-untyped,unused-ignore]

        difference, n = self.entry["difference"], gain.n
        tail = (1 - float(difference.get("confidence", 0.95))) / 2
        # The bootstrap's spread divides by n where the sample's divides by n - 1.
        half = float(student.ppf(1 - tail, n - 1)) * float(difference.get("stderr") or 0.0) * math.sqrt(n / (n - 1))
        half = max(half, POINT_UNITS.get(gain.unit, 0.0) * (1 - tail ** (1 / n)))
        return replace(gain, low=min(gain.low, gain.value - half), high=max(gain.high, gain.value + half))


def measured(results: Mapping[str, Any], *, subtasks: bool = True) -> Iterator[Measured]:
    """Yield every metric of the results, part by part, with the primary one of a part first."""
    for part, body in results["parts"].items():
        about = (part, str(body["name"]), str(body["group"]))
        for metric, entry in sorted(body["metrics"].items(), key=lambda item: not item[1]["primary"]):
            yield Measured(*about, None, metric, bool(entry["primary"]), entry)
        for subtask, inner in (body.get("subtasks") or {}).items() if subtasks else ():
            for metric, entry in inner.items():
                yield Measured(*about, subtask, metric, False, entry)


def mean_gain(gains: Sequence[Gain]) -> Gain:
    """Return the mean of gains of one unit; of a single gain, the gain itself.

    Raises:
        ValueError: If there are no gains, or their units differ.
    """
    if len({gain.unit for gain in gains}) != 1:
        raise ValueError("a mean needs gains of one unit")
    if len(gains) == 1:
        return gains[0]
    k = len(gains)
    value = math.fsum(gain.value for gain in gains) / k
    base = math.fsum(gain.base for gain in gains) / k
    low = high = because = None
    without = [gain for gain in gains if gain.low is None or gain.high is None]
    if without:
        because = without[0].because or "a member has no interval"
    else:
        low = value - math.hypot(*(gain.value - (gain.low or 0.0) for gain in gains)) / k
        high = value + math.hypot(*((gain.high or 0.0) - gain.value for gain in gains)) / k
    return Gain(value, low, high, gains[0].unit, base, min(gain.n for gain in gains), k, because)
