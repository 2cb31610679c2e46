"""Task scores and retention of the settings of a study, with joint draws for their intervals.

    task = (score - base) / (LoRA - base)          retention = (general - LoRA) / (base - LoRA)

LoRA is ``sft`` at the learning rate that is best for its task. Strengths are chosen on one half of the items and
reported on the other; an item's half is a hash of its identifier, equal for all runs.

Letters: n items.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfaug.common.errors import DataError, nearest
from selfaug.common.statistics import Estimate, Items, contribution, ratios, seed_noise, two_way
from selfaug.evaluation.results import items_of, primary, read_results, read_samples
from selfaug.run.folder import RunFolder
from selfaug.study.grid import Setting

__all__ = ["HALVES", "Half", "Scores", "half_of", "read_scores", "scaled"]

HALVES = ("choose", "report")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Half:
    """Scores of the base and of each run on one half of the items of a part.

    Args:
        group: ``task`` or ``general``.
        sign: 1 if higher is better, else -1.
        base: Scores of the base model.
        tuned: Scores of each setting by seed.
    """

    group: str
    sign: float
    base: Items
    tuned: Mapping[Setting, Mapping[int, Items]]


@dataclass(frozen=True)
class Scores:
    """All scores of one world.

    Args:
        settings: Settings with at least one finished run.
        halves: Parts of the results by the names of :data:`HALVES`.
        task_unit: Unit of the task's metric.
    """

    settings: tuple[Setting, ...]
    halves: Mapping[str, tuple[Half, ...]]
    task_unit: str = ""

    def mean(self, half: str, group: str, setting: Setting | None) -> float:
        """Return the signed mean over the parts of a group and over seeds; ``None`` is the base."""
        parts = [part for part in self.halves[half] if part.group == group]
        return float(np.mean([part.sign * _side(part, setting) for part in parts]))

    def drawn(self, half: str, resamples: int, seed: int) -> dict[tuple[str, Setting | None], Floats]:
        """Return draws of each mean by (group, setting): the items resampled, plus the error that seeds leave.

        Both are drawn once for all settings, so that settings with the same items and seeds are compared in pairs. The
        error of few seeds is Student's (:func:`~selfaug.common.statistics.seed_noise`).
        """
        rng = np.random.default_rng(seed)
        totals: dict[tuple[str, Setting | None], list[Floats]] = {}
        for part in self.halves[half]:
            n = len(part.base.numerator_n)
            index = rng.integers(n, size=(resamples, n))
            for setting in (None, *self.settings):
                each = [part.sign * ratios(items, index) for items in _runs(part, setting)]
                totals.setdefault((part.group, setting), []).append(np.mean(each, axis=0))
        drawn = {key: np.mean(values, axis=0) for key, values in totals.items()}
        tuned = [key for key in drawn if key[1] is not None]
        noise = seed_noise([self._deviations(half, *key) for key in tuned], resamples, rng)
        return drawn | {key: drawn[key] + each for key, each in zip(tuned, noise, strict=True)}

    def gap(self, half: str, group: str, one: Setting, other: Setting) -> Estimate:
        """Return the mean of a setting minus that of another, over the seeds that both have and over items."""
        parts = [part for part in self.halves[half] if part.group == group]
        seeds = sorted(set(parts[0].tuned[one]) & set(parts[0].tuned[other]))
        if not seeds:
            return Estimate(self.mean(half, group, one) - self.mean(half, group, other), math.inf, 1.0)
        gaps = [
            float(np.mean([part.sign * (_value(part.tuned[one][s]) - _value(part.tuned[other][s])) for part in parts]))
            for s in seeds
        ]
        items = [
            np.mean([contribution(part.tuned[one][s]) - contribution(part.tuned[other][s]) for s in seeds], axis=0)
            for part in parts
        ]
        return two_way(gaps, items)

    def _deviations(self, half: str, group: str, setting: Setting | None) -> Floats:
        """Return, for each seed of the study, how far its score is from the mean over seeds; NaN without a run."""
        assert setting is not None
        parts = [part for part in self.halves[half] if part.group == group]
        every = sorted({seed for runs in parts[0].tuned.values() for seed in runs})
        means = np.array(
            [
                np.mean([part.sign * _value(part.tuned[setting][seed]) for part in parts])
                if seed in parts[0].tuned[setting]
                else np.nan
                for seed in every
            ]
        )
        centred: NDArray[np.float64] = means - np.nanmean(means)
        return centred

    def seeds(self, setting: Setting) -> int:
        """Return the number of finished runs of a setting."""
        return len(next(iter(self.halves["report"])).tuned[setting])


def _runs(part: Half, setting: Setting | None) -> list[Items]:
    return [part.base] if setting is None else list(part.tuned[setting].values())


def _value(items: Items) -> float:
    return float(items.numerator_n.sum() / items.denominator_n.sum())


def _side(part: Half, setting: Setting | None) -> float:
    return float(np.mean([_value(items) for items in _runs(part, setting)]))


def scaled(task: Any, general: Any, base: tuple[Any, Any], lora: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return both axes of the figure; infinite or NaN where LoRA gains or loses nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (
            np.divide(np.subtract(task, base[0]), np.subtract(lora[0], base[0])),
            np.divide(np.subtract(general, lora[1]), np.subtract(base[1], lora[1])),
        )


def read_scores(folders: Mapping[Setting, Mapping[int, Path]], task_metric: str | None = None) -> Scores:
    """Read the results and samples of finished runs.

    Args:
        folders: Run folders of each setting by seed.
        task_metric: Metric of the task; ``None`` for the primary one.

    Raises:
        DataError: If runs were measured on different items, or task or general ability were not measured.
    """
    parts: dict[str, dict[str, Any]] = {}
    for setting, runs in folders.items():
        for seed, folder in runs.items():
            run = RunFolder(folder)
            results = read_results(run.results)
            samples: dict[str, list[Mapping[str, Any]]] = {}
            for sample in read_samples(run.samples):
                samples.setdefault(sample["part"], []).append(sample)
            for name, (metric, entry) in primary(results).items():
                if task_metric is not None and results["parts"][name]["group"] == "task":
                    metric, entry = task_metric, _metric(results["parts"][name]["metrics"], task_metric, folder)
                about = {"group": results["parts"][name]["group"], "sign": 1.0 if entry["higher_is_better"] else -1.0}
                part = parts.setdefault(name, {**about, "unit": entry["unit"], "runs": {}, "prompts": None})
                prompts = results["parts"][name].get("prompts")
                if part["prompts"] not in (None, prompts):
                    raise DataError(
                        f"{folder}: {name} was measured on other items than in the other runs.", "evaluate it again."
                    )
                part["prompts"] = prompts
                part["runs"].setdefault(setting, {})[seed] = samples[name], metric
    for group in ("task", "general"):
        units = {part["unit"] for part in parts.values() if part["group"] == group}
        if not units:
            what = "--data" if group == "task" else "--general or --general_data"
            raise DataError(f"nothing of the group {group!r} was measured, and it is an axis.", f"pass {what}.")
        if len(units) > 1:
            raise DataError(f"the {group} metrics have different units ({', '.join(sorted(units))}): their mean would "
                            "be of nothing.", "measure accuracies alone, or texts alone.")  # fmt: skip
    halves = {half: tuple(_half(name, part, half) for name, part in parts.items()) for half in HALVES}
    task_unit = next(part["unit"] for part in parts.values() if part["group"] == "task")
    return Scores(tuple(folders), halves, task_unit)


def _metric(metrics: Mapping[str, Any], name: str, folder: Path) -> dict[str, Any]:
    if name not in metrics:
        raise DataError(
            f"{folder} has no task metric {name!r}.{nearest(name, metrics)}", f"it has {', '.join(metrics)}."
        )
    return dict(metrics[name])


def _half(name: str, part: Mapping[str, Any], half: str) -> Half:
    tuned = {}
    base = None
    for setting, runs in part["runs"].items():
        scores = {}
        for seed, (samples, metric) in runs.items():
            kept = [sample for sample in samples if half_of(name, sample) == half]
            if not kept:
                raise DataError(
                    f"{name} has too few items to choose on one half and report on the other.", "measure more."
                )
            base, one = items_of(kept, metric)
            scores[seed] = one
        tuned[setting] = scores
    assert base is not None
    return Half(part["group"], part["sign"], base, tuned)


def half_of(part: str, sample: Mapping[str, Any]) -> str:
    """Return the half of an item."""
    digest = hashlib.blake2b(f"{part} {sample.get('subtask')} {sample['id']}".encode(), digest_size=2).digest()
    return HALVES[digest[0] & 1]
