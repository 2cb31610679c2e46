"""The schema of `results.json`, written by `evaluate` and read by `report`, `gate` and `relate`.

`docs/results-format.md` explains every field with an example. The schema's number changes when a reader of the old one
would misread the new one; added fields do not change it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfaug.common.errors import DataError
from selfaug.common.files import json_lines, read_json
from selfaug.common.flips import flips
from selfaug.common.statistics import CONFIDENCE, RESAMPLES, Items, difference, standard_error, value
from selfaug.common.store import write_whole

__all__ = [
    "AGAIN", "SCHEMA", "SIDES", "items_of", "metric", "primary", "problems", "read_results", "read_samples",
    "write_results",
]  # fmt: skip

AGAIN = "run `selfaug evaluate` on the run again; finished parts are not repeated."
SCHEMA = 1
SIDES = ("base", "tuned")
GROUPS = ("task", "general")

_REQUIRED: dict[str, type | tuple[type, ...]] = {
    "schema": int, "created": str, "command": list, "run": dict, "config": dict, "seeds": dict, "versions": dict,
    "hashes": dict, "device": dict, "parts": dict,
}  # fmt: skip
_PART: dict[str, type | tuple[type, ...]] = {
    "group": str, "name": str, "key": str, "settings": dict, "data": dict, "prompts": str, "items": int,
    "left_out": dict, "counts": dict, "seconds": dict, "metrics": dict,
}  # fmt: skip
_METRIC: dict[str, type | tuple[type, ...]] = {
    "unit": str, "higher_is_better": bool, "primary": bool, "base": dict, "tuned": dict,
    "difference": (dict, type(None)),
}  # fmt: skip
_ROUNDING = 1e-9  # lm_eval adds items up in another order


def metric(
    base: Items,
    tuned: Items,
    *,
    unit: str,
    higher_is_better: bool,
    primary: bool = False,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    reported: Mapping[str, tuple[float, float | None]] | None = None,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Return a metric's entry: both values with standard errors, and their paired difference with its interval.

    Args:
        base: Items of the base model.
        tuned: Items of the tuned model, in the same order.
        unit: Unit: ``fraction``, ``score`` (-1 to 1), ``nats/token``, or what the metric counts.
        higher_is_better: Whether higher values are better.
        primary: Whether the metric represents its part in averages.
        seed: Seed of the bootstrap.
        confidence: Confidence of the interval.
        resamples: Number of resamples of the bootstrap.
        reported: Value and standard error by side, where another program computed them. Where its values are not
            ratios of the items' sums, items cannot be resampled and the difference has no interval.
        more: Further fields of the entry.

    Returns:
        The entry, or ``None`` where no item counts.
    """
    own = {side: (value(items), standard_error(items)) for side, items in zip(SIDES, (base, tuned), strict=True)}
    chosen = dict(own) if reported is None else dict(reported)
    if any(pair[0] is None or not math.isfinite(pair[0]) for pair in chosen.values()):
        return None
    agree = all(own[s][0] is not None and abs((own[s][0] or 0.0) - (chosen[s][0] or 0.0)) <= _ROUNDING for s in SIDES)
    sides = {}
    for side, items in zip(SIDES, (base, tuned), strict=True):
        stderr = chosen[side][1]
        if stderr is None and agree:
            stderr = own[side][1]
        sides[side] = {"value": chosen[side][0], "stderr": stderr, "n": items.count}
    gap: dict[str, Any] = {"value": (chosen["tuned"][0] or 0.0) - (chosen["base"][0] or 0.0)}
    estimate = difference([(base, tuned)], seed=seed, confidence=confidence, resamples=resamples) if agree else None
    gap["stderr"] = None if estimate is None else estimate.stderr
    gap["interval"] = None if estimate is None or estimate.interval is None else list(estimate.interval)
    gap |= {"confidence": confidence, "method": "paired bootstrap over items", "resamples": resamples}
    gap |= {"seed": seed, "n": min(base.count, tuned.count)}
    if not agree:
        gap["no_interval_because"] = "the metric is no ratio of sums over items"
    elif estimate is not None and estimate.interval is None:
        gap["no_interval_because"] = "too few items count"
    head = {"unit": unit, "higher_is_better": higher_is_better, "primary": primary, **(more or {})}
    entry = {**head, **sides, "difference": gap}
    turned = flips(base, tuned) if unit == "fraction" and higher_is_better and agree else None
    if turned is not None:
        entry["flips"] = {"lost": turned.lost, "gained": turned.gained, "n": turned.n,
                          "surely_lost": turned.surely_lost, "surely_gained": turned.surely_gained}  # fmt: skip
    return entry


def problems(results: Any) -> list[str]:
    """Return the faults of a results object as ``place: fault``; none where it is valid."""
    faults = list(_fields(results, _REQUIRED, ""))
    if faults:
        return faults
    if results["schema"] != SCHEMA:
        return [f"schema: {results['schema']}, this selfaug reads {SCHEMA}"]
    for name, part in results["parts"].items():
        where = f"parts.{name}"
        bad = list(_fields(part, _PART, where))
        faults += bad
        if bad:
            continue
        if part["group"] not in GROUPS:
            faults.append(f"{where}.group: {part['group']!r}, one of {', '.join(GROUPS)}")
        if sum(bool(entry.get("primary")) for entry in part["metrics"].values() if isinstance(entry, Mapping)) > 1:
            faults.append(f"{where}.metrics: more than one is primary")
        for label, entry in part["metrics"].items():
            faults += _metric_problems(entry, f"{where}.metrics.{label}")
        for sub, inner in (part.get("subtasks") or {}).items():
            for label, entry in inner.items():
                faults += _metric_problems(entry, f"{where}.subtasks.{sub}.{label}")
    faults += [f"{place}: {number} is not finite" for place, number in _numbers(results) if not math.isfinite(number)]
    return faults


def _metric_problems(entry: Any, where: str) -> list[str]:
    faults = list(_fields(entry, _METRIC, where))
    if faults:
        return faults
    for side in SIDES:
        faults += _fields(entry[side], {"value": (int, float), "stderr": (int, float, type(None)), "n": int},
                         f"{where}.{side}")  # fmt: skip
    gap = entry["difference"]
    if faults or gap is None:
        return faults
    faults += _fields(gap, {"value": (int, float), "interval": (list, type(None)), "n": int}, f"{where}.difference")
    if faults:
        return faults
    if not math.isclose(gap["value"], entry["tuned"]["value"] - entry["base"]["value"], rel_tol=0, abs_tol=1e-12):
        faults.append(f"{where}.difference.value: not tuned minus base")
    interval = gap["interval"]
    if interval is not None and not (len(interval) == 2 and interval[0] <= interval[1]):
        faults.append(f"{where}.difference.interval: {interval}, expected [low, high]")
    if interval is None and not gap.get("no_interval_because"):
        faults.append(f"{where}.difference.no_interval_because: missing where there is no interval")
    return faults


def _fields(value: Any, wanted: Mapping[str, type | tuple[type, ...]], where: str) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"{where or 'results'}: not an object"
        return
    for name, kind in wanted.items():
        place = f"{where}.{name}" if where else name
        if name not in value:
            yield f"{place}: missing"
        elif not isinstance(value[name], kind) or (isinstance(value[name], bool) and kind is not bool):
            yield f"{place}: {type(value[name]).__name__}, expected {_type_names(kind)}"


def _type_names(kind: type | tuple[type, ...]) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join("null" if k is type(None) else k.__name__ for k in kinds)


def _numbers(value: Any, where: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from _numbers(inner, f"{where}.{i}")
    elif isinstance(value, float):
        yield where, value


def write_results(path: str | Path, results: Mapping[str, Any]) -> None:
    """Check the results as readers do, and write them atomically.

    Raises:
        DiskError: If the file cannot be written.
    """
    wrong = problems(results)
    if wrong:
        raise AssertionError(f"results that no reader would take: {'; '.join(wrong[:5])}")
    write_whole(path, json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_results(path: str | Path) -> dict[str, Any]:
    """Return the results of a run.

    Raises:
        DataError: If the file is missing, damaged or of another schema; the message names the first problems.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist: the run has not been evaluated", AGAIN)
    results = read_json(path, hint=AGAIN)
    wrong = problems(results)
    if wrong:
        raise DataError(f"{path} is not whole: {'; '.join(wrong[:5])}", AGAIN)
    return dict(results)


def read_samples(path: str | Path, part: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the lines of a sample log in order, of one part or of all.

    Raises:
        DataError: If the file is missing or damaged.
    """
    for _, sample in json_lines(path, hint=AGAIN):
        if part is None or sample["part"] == part:
            yield sample


def items_of(samples: Sequence[Mapping[str, Any]], name: str) -> tuple[Items, Items]:
    """Return a metric's items of base and tuned from samples of one part; intervals are computed from them."""
    base, tuned = (Items.of([sample[side]["values"].get(name) for sample in samples]) for side in SIDES)
    return base, tuned


def primary(results: Mapping[str, Any], group: str | None = None) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return ``{part: (name, entry)}`` of each part's primary metric, for one group or all."""
    return {
        part: (name, entry)
        for part, body in results["parts"].items()
        for name, entry in body["metrics"].items()
        if entry["primary"] and group in (None, body["group"])
    }
