"""The summary of a study: curves, fronts, hypervolumes and a sentence, as plain numbers.

The strength of each curve is chosen on the half of the items that is not reported, by the largest ``task · retention``
there. Intervals are percentiles over resamples of items and, within each setting, of seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from selfaug.common.statistics import interval
from selfaug.study.front import dominates, hypervolume, pareto
from selfaug.study.grid import Setting
from selfaug.study.scores import Scores, scaled

__all__ = ["RESAMPLES", "SURE", "joined", "summary", "yardstick"]

RESAMPLES = 2000
_TAIL = 0.025
SURE = 0.95
"""Share of the resamples in which a point must beat another to dominate it."""


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
    return {
        **about,
        "points": points,
        "curves": _curves(scores, points, clouds, choice),
        "says": _sentence(scores, points, clouds, focus),
    }


def _curves(
    scores: Scores, points: list[dict[str, Any]], clouds: dict[Setting, Any], choice: dict[Setting, float]
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
            }
        )
    return sorted(curves, key=lambda entry: -entry["hypervolume"])


def _draws(clouds: list[Any]) -> Any:
    """Return the tasks and retentions of a curve for each resample, from (settings, 2, resamples)."""
    return np.moveaxis(np.nan_to_num(np.stack(clouds)), 2, 0).transpose(0, 2, 1)


def _sentence(scores: Scores, points: list[dict[str, Any]], clouds: dict[Setting, Any], focus: str) -> str:
    """Return a sentence on whether any rival dominates the method ``focus`` anywhere on its curve."""
    own = [(s, p) for s, p in zip(scores.settings, points, strict=True) if s.method == focus]
    others = [(s, p) for s, p in zip(scores.settings, points, strict=True) if s.method != focus]
    if not own or not others:
        return f"There is nothing to compare {focus} with."
    sure: list[str] = []
    in_means: list[str] = []
    for rival, there in others:
        for setting, here in own:
            if dominates((there["task"], there["retention"]), (here["task"], here["retention"])):
                beats = float((clouds[rival] >= clouds[setting]).all(axis=0).mean())
                (sure if beats >= SURE else in_means).append(
                    f"{rival.label} beats {setting.label} ({beats:.0%} of the draws)"
                )
    if sure:
        also = f" In the means also: {'; '.join(in_means)}." if in_means else ""
        return f"Yes, {focus} is dominated on its curve: {'; '.join(sure)}.{also}"
    if in_means:
        return f"Not surely: {'; '.join(in_means)} in the means, none in {SURE:.0%} of the draws."
    return f"No rival dominates {focus} anywhere on its curve."
