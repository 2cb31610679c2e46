"""The summary of a study: curves, fronts, hypervolumes and a sentence, as plain numbers.

The strength of each curve is chosen on the half of the items that is not reported, by the largest ``task · retention``
there. Intervals are percentiles over joint draws of items and of the error that few seeds leave.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from selfaug.common.statistics import interval
from selfaug.study.dominance import LEVEL, Dominance, dominance
from selfaug.study.front import hypervolume, pareto
from selfaug.study.grid import Setting, further
from selfaug.study.scores import Scores, scaled

__all__ = ["RESAMPLES", "joined", "summary", "yardstick"]

RESAMPLES = 2000
_TAIL = 0.025


def yardstick(scores: Scores) -> Setting:
    """Return ``sft`` at the learning rate that is best for its task, on the half for choosing.

    Args:
        scores: Scores of one world.

    Raises:
        ValueError: If no run of ``sft`` is finished.
    """
    plain = [setting for setting in scores.settings if setting.method == "sft" and setting.also == setting.world]
    if not plain:
        raise ValueError("no run of sft is finished")
    return max(plain, key=lambda setting: scores.mean("choose", "task", setting))


def joined(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Join the summaries of worlds for table, figure and ``comparison.json``; both axes are scaled within a world.

    Args:
        summaries: Summary of each world by its name, which is empty for a single world.
    """
    worlds = [
        {"world": world, **{name: value for name, value in one.items() if name not in ("points", "curves")}}
        for world, one in summaries.items()
    ]
    return {
        "says": " ".join(f"{entry['world']}: {entry['says']}" if entry["world"] else entry["says"] for entry in worlds),
        "worlds": worlds,
        **{
            name: [{**entry, "world": world} for world, one in summaries.items() for entry in one[name]]
            for name in ("points", "curves")
        },
    }


def summary(scores: Scores, *, focus: str = "selfaug", resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Summarise one world.

    Args:
        scores: Scores of the finished runs of one world.
        focus: Method with whose curve the others are compared.
        resamples: Number of resamples for every interval.
        seed: Seed of the resamples.
    """
    lora = yardstick(scores)
    ends = {
        half: {end: (scores.mean(half, "task", s), scores.mean(half, "general", s)) for end, s in
               (("base", None), ("lora", lora))} for half in ("choose", "report")
    }  # fmt: skip
    (base_task, base_general), (lora_task, lora_general) = ends["report"]["base"], ends["report"]["lora"]
    about = {
        "base": {"task": base_task, "general": base_general},
        "lora": {"task": lora_task, "general": lora_general, "setting": lora.label},
        "resamples": resamples,
        "task_unit": scores.task_unit,
    }
    missing = [
        text for text, gone in (
            ("plain LoRA gained nothing on the task", lora_task <= base_task),
            ("plain LoRA forgot nothing", lora_general >= base_general),
        ) if gone
    ]  # fmt: skip
    drawn = scores.drawn("report", resamples, seed)
    if missing:
        rows = [
            {"method": s.method, "curve": s.curve, "setting": s.label, "seeds": scores.seeds(s),
             "task_raw": scores.mean("report", "task", s), "general_raw": scores.mean("report", "general", s)}
            for s in scores.settings
        ]  # fmt: skip
        return {
            **about,
            "points": rows,
            "curves": [],
            "says": f"{' and '.join(missing)}: there is nothing to scale by.",
        }
    low, high = ((drawn["task", end], drawn["general", end]) for end in (None, lora))
    points: list[dict[str, Any]] = []
    clouds: dict[Setting, Any] = {}
    choice: dict[Setting, float] = {}
    for setting in scores.settings:
        raw = scores.mean("report", "task", setting), scores.mean("report", "general", setting)
        task, kept = scaled(*raw, ends["report"]["base"], ends["report"]["lora"])
        clouds[setting] = np.stack(scaled(drawn["task", setting], drawn["general", setting], low, high))
        chooses = scores.mean("choose", "task", setting), scores.mean("choose", "general", setting)
        across, up = scaled(*chooses, ends["choose"]["base"], ends["choose"]["lora"])
        choice[setting] = max(0.0, float(across)) * max(0.0, float(up))
        points.append(
            {
                "method": setting.method,
                "curve": setting.curve,
                "setting": setting.label,
                "option": setting.option,
                "value": setting.value,
                "seeds": scores.seeds(setting),
                "task": float(task),
                "retention": float(kept),
                "task_interval": interval(clouds[setting][0], _TAIL),
                "retention_interval": interval(clouds[setting][1], _TAIL),
                "task_raw": raw[0],
                "general_raw": raw[1],
            }
        )
    for number in pareto([(point["task"], point["retention"]) for point in points]):
        points[number]["front"] = True
    found = dominance(
        {
            (rival, own): (scores.gap("report", "task", rival, own), scores.gap("report", "general", rival, own))
            for rival in scores.settings
            for own in scores.settings
            if own.method == focus != rival.method
        }
    )
    return {
        **about,
        "points": points,
        "curves": _curves(scores, points, clouds, choice, lora),
        "dominance": None if found is None else _record(found),
        "says": _sentence(found, focus, single=min(p["seeds"] for p in points) < 2),
    }


def _curves(
    scores: Scores,
    points: list[dict[str, Any]],
    clouds: dict[Setting, Any],
    choice: dict[Setting, float],
    lora: Setting,
) -> list[dict[str, Any]]:
    curves = []
    for curve in dict.fromkeys(setting.curve for setting in scores.settings):
        own = [setting for setting in scores.settings if setting.curve == curve]
        at = [point for point in points if point["curve"] == curve]
        areas = np.array([hypervolume(list(zip(*draw, strict=True))) for draw in _draws([clouds[s] for s in own])])
        best = max(own, key=lambda setting: choice[setting])
        curves.append(
            {
                "curve": curve,
                "settings": len(own),
                "hypervolume": hypervolume([(point["task"], point["retention"]) for point in at]),
                "hypervolume_interval": interval(areas, _TAIL),
                "chosen": best.label,
                "method": best.method,
                "edge": _edge(own, lora if lora in own else best),
            }
        )
    return sorted(curves, key=lambda entry: -entry["hypervolume"])


def _draws(clouds: list[Any]) -> Any:
    """Return the tasks and retentions of a curve for each resample, from (settings, 2, resamples)."""
    return np.moveaxis(np.nan_to_num(np.stack(clouds)), 2, 0).transpose(0, 2, 1)


def _edge(own: list[Setting], best: Setting) -> str | None:
    """Return the end of the strengths at which the best one lies, ``lowest`` or ``highest``, if the range goes on.

    For plain LoRA the best one is that for the task, which scales both axes.
    """
    values = sorted({setting.value for setting in own if setting.value > 0})  # 0 selects a rule
    if len(values) < 2:
        return None
    ends = {values[0]: "lowest", values[-1]: "highest"}
    end = ends.get(best.value)
    return None if end is None or further(best.method, best.value, up=end == "highest") is None else end


def _record(found: Dominance[Setting]) -> dict[str, Any]:
    near = [pair for pair in found.pairs if pair.in_means or pair.p_free > LEVEL]
    return {
        "p_none": found.p_none,
        "pairs": len(found.pairs),
        "open": [
            {"rival": pair.rival.label, "own": pair.own.label, "in_means": pair.in_means,
             "p_dominates": pair.p_dominates, "p_free": pair.p_free}
            for pair in near
        ],
    }  # fmt: skip


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def _sentence(found: Dominance[Setting] | None, focus: str, *, single: bool) -> str:
    """Return a sentence on whether any rival dominates the method ``focus`` anywhere on its curve."""
    if found is None:
        return f"There is nothing to compare {focus} with."
    seeds = " One seed: how much seeds differ is not in it." if single else ""
    beats = {
        sure: "; ".join(
            f"{pair.rival.label} beats {pair.own.label} ({_p(pair.p_dominates)})"
            for pair in found.pairs
            if pair.in_means and (pair.p_dominates <= LEVEL) == sure
        )
        for sure in (True, False)
    }
    if beats[True]:
        also = f" In the means also: {beats[False]}." if beats[False] else ""
        return f"Yes, {focus} is dominated on its curve: {beats[True]}, over all pairs.{also}{seeds}"
    if beats[False]:
        return f"Not surely: {beats[False]} in the means, none at {LEVEL:.0%} over all {len(found.pairs)} pairs.{seeds}"
    if found.p_none <= LEVEL:
        return (
            f"No rival dominates {focus} anywhere on its curve (all {len(found.pairs)} pairs at once: "
            f"{_p(found.p_none)}).{seeds}"
        )
    near = found.nearest
    return (
        f"No rival dominates {focus} in the means, which is not sure at {LEVEL:.0%}: {near.rival.label} may beat "
        f"{near.own.label} ({_p(near.p_free)}).{seeds}"
    )
