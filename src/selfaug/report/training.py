"""How did the training go, and what did it cost, as `log.jsonl` has it?"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfaug.common.files import whole_lines

__all__ = ["CURVES", "Cost", "Curve", "Training", "read_log", "training_of"]

CURVES = ("nll", "alignment", "eval_nll", "eval_alignment", "loss", "eval_loss")
"""What is drawn; ``loss`` only for a log without ``nll``."""


@dataclass(frozen=True)
class Curve:
    """A logged number over steps; steps at which it was not finite are left out."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Cost:
    """What the training took; ``None`` for what the log does not tell.

    Args:
        steps: Optimiser steps.
        seconds: Of the training; of a resumed one not known.
        tokens: Trained on, prompts included.
        tokens_per_second: Median over log events, all devices together.
        reference_tokens: That passed through the reference as well.
        reference_share: Their share of ``tokens``.
    """

    steps: int | None
    seconds: float | None
    tokens: int | None
    tokens_per_second: float | None
    reference_tokens: int | None
    reference_share: float | None


@dataclass(frozen=True)
class Training:
    """Curves by name, and the cost."""

    curves: Mapping[str, Curve]
    cost: Cost


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The events of a log; a last line that was cut by a kill is left out."""
    return [event for event in whole_lines(Path(path)) if _is_number(event.get("step"))]


def training_of(events: Sequence[Mapping[str, Any]], *, resumed: bool) -> Training:
    """Curves and cost.

    Args:
        events: Of :func:`read_log`.
        resumed: Whether the run was resumed: the log's run time is then that of the last part alone.
    """
    curves = {}
    for name in CURVES:
        points = [(int(event["step"]), float(event[name])) for event in events if _is_number(event.get(name))]
        if points:
            curves[name] = Curve(tuple(step for step, _ in points), tuple(value for _, value in points))
    for plain, whole in (("nll", "loss"), ("eval_nll", "eval_loss")):
        if plain in curves:
            curves.pop(whole, None)
    return Training(curves, _cost(events, resumed))


def _cost(events: Sequence[Mapping[str, Any]], resumed: bool) -> Cost:
    def every(name: str) -> list[float]:
        return [float(event[name]) for event in events if _is_number(event.get(name))]

    steps, tokens, speed = every("step"), every("num_tokens"), every("tokens_per_second")
    times, reference = every("train_runtime"), every("reference_tokens")
    total = int(tokens[-1]) if tokens else None
    passed = int(sum(reference)) if reference else None
    return Cost(
        steps=int(steps[-1]) if steps else None,
        seconds=times[-1] if times and not resumed else None,
        tokens=total,
        tokens_per_second=statistics.median(speed) if speed else None,
        reference_tokens=passed,
        reference_share=passed / total if passed is not None and total else None,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
