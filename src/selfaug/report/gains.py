"""How much was gained or lost, in the direction in which more is better, and between which bounds does it lie?

    gain = tuned - base where higher is better, base - tuned where lower is

Several metrics are averaged as ``Σ gain / k``. Its bounds come from those of its members by the method of variance
estimates recovery (Zou and Donner 2008), which keeps skew: ``low = mean - sqrt(Σ (gain - low)²) / k``. It takes the
members for independent, as parts with items of their own are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["POINTS", "Gain", "Measured", "mean_gain", "measured"]

POINTS = {"fraction": 1.0, "score": 2.0}
"""Units that are told in points (hundredths), and the width of an item's range: 0 to 1, and -1 to 1."""


@dataclass(frozen=True)
class Gain:
    """A gain and its bounds; negative where something was lost.

    Args:
        value: In ``unit``.
        low: Lower bound, or ``None`` where there is none.
        high: Upper bound.
        unit: ``fraction``, ``score``, ``nats/token``, or what the metric counts.
        base: The base model's value; of several metrics the mean.
        n: Items; of several metrics the smallest number.
        members: How many metrics it is the mean of.
        because: Why there are no bounds.
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
        """``gain`` or ``loss`` where the bounds exclude 0, ``none`` where they are both 0, else ``unclear``."""
        if self.low is None or self.high is None:
            return "unclear"
        if self.low == self.high == 0:
            return "none"
        return "gain" if self.low > 0 else "loss" if self.high < 0 else "unclear"


@dataclass(frozen=True)
class Measured:
    """One metric of one part of ``results.json``.

    Args:
        part: The part's key, such as ``general:arc_challenge``.
        name: The part's name, such as ``arc_challenge``.
        group: ``task`` or ``general``.
        subtask: Of a group such as MMLU, else ``None``.
        metric: The metric's name.
        primary: Whether it stands for its part.
        entry: As ``docs/results-format.md`` has it.
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
        """The metric's unit."""
        return str(self.entry["unit"])

    @property
    def gain(self) -> Gain | None:
        """With the interval as it was measured; ``None`` where base and tuned were not compared."""
        apart = self.entry["difference"]
        if apart is None:
            return None
        sign = 1.0 if self.entry["higher_is_better"] else -1.0
        low = high = None
        # 0.0 + x turns -0.0 into 0.0.
        if apart["interval"] is not None:
            low, high = sorted(0.0 + sign * float(end) for end in apart["interval"])
        base, because = float(self.entry["base"]["value"]), apart.get("no_interval_because")
        return Gain(0.0 + sign * apart["value"], low, high, self.unit, base, int(apart["n"]), because=because)

    @property
    def sure(self) -> Gain | None:
        """With bounds that are no narrower than so few items can show.

        A bootstrap of few items is too narrow, and of items without any change it has no width at all. So the bounds
        hold the bootstrap's interval, Student's (which knows the number of items), and for metrics of a known range
        what a change that happens to a share of ``1 - 0.025^(1/n)`` of all items would make: n items miss it once in
        forty times.
        """
        gain = self.gain
        if gain is None or gain.low is None or gain.high is None:
            return gain
        if gain.n < 2:
            return replace(gain, low=None, high=None, because="too few items count")
        from scipy.stats import t as student  # type: ignore[import-untyped,unused-ignore]

        apart, n = self.entry["difference"], gain.n
        tail = (1 - float(apart.get("confidence", 0.95))) / 2
        # The bootstrap's spread divides by n where the sample's divides by n - 1.
        half = float(student.ppf(1 - tail, n - 1)) * float(apart.get("stderr") or 0.0) * math.sqrt(n / (n - 1))
        half = max(half, POINTS.get(gain.unit, 0.0) * (1 - tail ** (1 / n)))
        return replace(gain, low=min(gain.low, gain.value - half), high=max(gain.high, gain.value + half))


def measured(results: Mapping[str, Any], *, subtasks: bool = True) -> Iterator[Measured]:
    """Every metric of the results, part by part, a part's primary one first."""
    for part, body in results["parts"].items():
        about = (part, str(body["name"]), str(body["group"]))
        for metric, entry in sorted(body["metrics"].items(), key=lambda item: not item[1]["primary"]):
            yield Measured(*about, None, metric, bool(entry["primary"]), entry)
        for subtask, inner in (body.get("subtasks") or {}).items() if subtasks else ():
            for metric, entry in inner.items():
                yield Measured(*about, subtask, metric, False, entry)


def mean_gain(gains: Sequence[Gain]) -> Gain:
    """The mean of gains of one unit; of one gain, itself.

    Raises:
        ValueError: If there are none, or their units differ.
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
