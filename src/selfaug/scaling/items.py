"""The items that a scale is chosen and confirmed on: a random half of each part for each, the first one in batches.

A scale that is chosen for its score on some items has that score partly by luck, so the rest says what it is worth.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfaug.common.errors import ConfigError
from selfaug.common.statistics import LOOKS
from selfaug.evaluation.parts import Part
from selfaug.evaluation.results import items_of, metric
from selfaug.evaluation.task_part import TaskPart

__all__ = ["Batches", "Measured", "drawn", "pooled"]

_RESAMPLES = 2_000  # many looks at many weights, each interval at least as wide as Student's


@dataclass(frozen=True)
class Batches:
    """A part's items, drawn into batches.

    Args:
        group: ``task`` or ``general``.
        choosing: Batches on which scales are compared; one a look.
        confirming: Items on which the chosen scale is confirmed.
        counts: Number of items for choosing and for confirming.
    """

    group: str
    choosing: tuple[Part, ...]
    confirming: Part
    counts: tuple[int, int]


@dataclass(frozen=True)
class Measured:
    """Entry in the results and sample lines of one batch of a part."""

    entry: Mapping[str, Any]
    samples: Sequence[Mapping[str, Any]]


def drawn(parts: Sequence[Part], looks: int, seed: int) -> tuple[dict[str, Batches], int]:
    """Return the batches of each part by its name, and the number of looks, fewer where a part has few items.

    Items of each subtask are drawn into both halves and every batch alike.

    Raises:
        ConfigError: If a part, or one of its subtasks, has fewer than two items.
    """
    counts = {part.name: part.items() for part in parts}
    for name, of in counts.items():
        for subtask, count in of.items():
            if count < 2:
                raise ConfigError(
                    f"{name} has {count} item{'s' * (count != 1)} of {subtask}, and one half of the items chooses the "
                    "scale while the other half confirms it",
                    "give more items, or leave it out.",
                )
    looks = min([looks, *(count // 2 for of in counts.values() for count in of.values())])
    found = {}
    for part in parts:
        rng = random.Random(f"{seed} {part.name}")
        places: list[dict[str, list[int]]] = [{} for _ in range(looks + 1)]
        for subtask, count in counts[part.name].items():
            order = list(range(count))
            rng.shuffle(order)
            half = count // 2
            for look in range(looks):
                places[look][subtask] = order[:half][look::looks]
            places[looks][subtask] = order[half:]
        sizes = [sum(map(len, of.values())) for of in places]
        *choosing, confirming = [part.only(of) for of in places]
        group = "task" if isinstance(part, TaskPart) else "general"
        found[part.name] = Batches(group, tuple(choosing), confirming, (sum(sizes[:-1]), sizes[-1]))
    return found, looks


def pooled(
    batches: Mapping[str, Sequence[Measured]], metrics: Sequence[str], *, seed: int, looks: int = 1
) -> dict[str, Any]:
    """Return results, as far as limits read them, over all batches that were measured of each part.

    Args:
        batches: Measured batches of each part.
        metrics: Names of metrics that are wanted beside the primary ones.
        seed: Seed of the bootstrap.
        looks: Number of times that the results are looked at, more batches each time: the intervals are as much wider
            as makes all of them hold with 95 %.
    """
    parts: dict[str, Any] = {}
    for name, measured in batches.items():
        if not measured:
            continue
        first = measured[0].entry
        entries = {label: entry for one in measured for label, entry in one.entry["metrics"].items()}
        samples = [sample for one in measured for sample in one.samples]
        kept = {}
        for label, entry in entries.items():
            if not entry["primary"] and label not in metrics:
                continue
            if (entry["difference"].get("no_interval_because") or "").startswith("the metric is no ratio"):
                raise ConfigError(
                    f"{name}: {label} is no mean over items, so batches of items say nothing of it",
                    "leave the part out, or choose a task whose metric is a mean.",
                )
            base, tuned = items_of(samples, label)
            pool = metric(
                base,
                tuned,
                unit=entry["unit"],
                higher_is_better=entry["higher_is_better"],
                primary=entry["primary"],
                seed=seed,
                confidence=LOOKS[looks],
                resamples=_RESAMPLES,
            )
            if pool is not None:
                kept[label] = _widened(pool)
        parts[name] = {"group": first["group"], "name": first["name"], "metrics": kept}
    return {"parts": parts}


def _widened(entry: dict[str, Any]) -> dict[str, Any]:
    """Widen the interval of a metric of right and wrong items to that of a score test, which holds for few items.

    With the share g of gained items, the largest drop δ solves ``(δ - drop)² = z² (2 g + δ - δ²) / n``: the variance is
    that of the drop δ itself. Where few items were lost, as at a first look, that of the items is too small, and a
    limit would pass too often. Without gained items this is Wilson's interval.
    """
    from scipy.stats import norm  # type: ignore[import-untyped,unused-ignore]

    turned, difference = entry.get("flips"), entry["difference"]
    if turned is None or difference["interval"] is None:
        return entry
    n = turned["n"]
    c = float(norm.ppf((1 + difference["confidence"]) / 2)) ** 2 / n

    def largest(drop: float, back: float) -> float:
        half = (2 * drop + c) ** 2 - 4 * (1 + c) * (drop**2 - 2 * back * c)
        return float((2 * drop + c + half**0.5) / (2 * (1 + c)))

    lost, gained = turned["lost"] / n, turned["gained"] / n
    low, high = difference["interval"]
    bounds = [min(low, -largest(lost - gained, gained)), max(high, largest(gained - lost, lost))]
    return {**entry, "difference": {**difference, "interval": bounds}}
