"""What comes out of a comparison: curves, fronts, areas, and a sentence, all as plain numbers.

Of each curve the strength is chosen on the half of the items that is not reported: the one whose rectangle
``task · retention`` is largest there. Intervals are percentiles over draws of items and, within each setting, of seeds.
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
"""Part of the draws in which a point must beat another to be said to dominate it."""


def yardstick(scores: Scores) -> Setting:
    """``sft`` at the learning rate that is best for its own task, on the half that chooses.

    Args:
        scores: Of one world.

    Raises:
        ValueError: If no run of ``sft`` is finished.
    """
    plain = [setting for setting in scores.settings if setting.method == "sft" and setting.also == setting.world]
    if not plain:
        raise ValueError("no run of sft is finished")
    return max(plain, key=lambda setting: scores.mean("choose", "task", setting))


def joined(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Everything that table, picture and ``comparison.json`` show: worlds side by side, since both axes are scaled.

    Args:
        summaries: Of each world, by its name; the name of an only one is empty.
    """
    worlds = [
        {"world": world, **{name: value for name, value in found.items() if name not in ("points", "curves")}}
        for world, found in summaries.items()
    ]
    return {
        "says": " ".join(f"{entry['world']}: {entry['says']}" if entry["world"] else entry["says"] for entry in worlds),
        "worlds": worlds,
        **{
            name: [{**entry, "world": world} for world, found in summaries.items() for entry in found[name]]
            for name in ("points", "curves")
        },
    }


def summary(scores: Scores, *, held: str = "selfaug", resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """What is found in one world.

    Args:
        scores: Of the finished runs of one world.
        held: The method whose curve the others are held against.
        resamples: Draws behind every interval.
        seed: Of the draws.
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
        "says": _sentence(scores, points, clouds, held),
    }


def _curves(
    scores: Scores, points: list[dict[str, Any]], clouds: dict[Setting, Any], choice: dict[Setting, float]
) -> list[dict[str, Any]]:
    found = []
    for curve in dict.fromkeys(setting.curve for setting in scores.settings):
        own = [setting for setting in scores.settings if setting.curve == curve]
        at = [point for point in points if point["curve"] == curve]
        areas = np.array([hypervolume(list(zip(*draw, strict=True))) for draw in _draws([clouds[s] for s in own])])
        best = max(own, key=lambda setting: choice[setting])
        found.append(
            {
                "curve": curve,
                "settings": len(own),
                "hypervolume": hypervolume([(point["task"], point["retention"]) for point in at]),
                "hypervolume_interval": interval(areas, _TAIL),
                "chosen": best.label,
            }
        )
    return sorted(found, key=lambda entry: -entry["hypervolume"])


def _draws(clouds: list[Any]) -> Any:
    """(settings, 2, resamples) → for each resample the tasks and the retentions of a curve."""
    return np.moveaxis(np.nan_to_num(np.stack(clouds)), 2, 0).transpose(0, 2, 1)


def _sentence(scores: Scores, points: list[dict[str, Any]], clouds: dict[Setting, Any], held: str) -> str:
    """Does any rival dominate the held method anywhere on its curve?"""
    own = [(s, p) for s, p in zip(scores.settings, points, strict=True) if s.method == held]
    others = [(s, p) for s, p in zip(scores.settings, points, strict=True) if s.method != held]
    if not own or not others:
        return f"There is nothing to hold {held} against."
    sure: list[str] = []
    seen: list[str] = []
    for rival, there in others:
        for setting, here in own:
            if dominates((there["task"], there["retention"]), (here["task"], here["retention"])):
                beats = float((clouds[rival] >= clouds[setting]).all(axis=0).mean())
                (sure if beats >= SURE else seen).append(
                    f"{rival.label} beats {setting.label} ({beats:.0%} of the draws)"
                )
    if sure:
        also = f" In the means also: {'; '.join(seen)}." if seen else ""
        return f"Yes, {held} is dominated on its curve: {'; '.join(sure)}.{also}"
    if seen:
        return f"Not surely: {'; '.join(seen)} in the means, none in {SURE:.0%} of the draws."
    return f"No rival dominates {held} anywhere on its curve."
