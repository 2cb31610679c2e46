"""Curves and cost of a training, from `log.jsonl`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfaug.common.files import whole_lines

__all__ = ["CURVES", "Cost", "Curve", "Training", "read_log", "training_of"]

CURVES = (
    "nll", "alignment", "eval_nll", "eval_alignment", "loss", "eval_loss", "probe_kl", "probe_kl_low", "probe_kl_high",
)  # fmt: skip
"""Logged numbers that are drawn; ``loss`` only for a log without ``nll``."""


@dataclass(frozen=True)
class Curve:
    """A logged number over steps; steps without a number are left out."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Cost:
    """The cost of a training; ``None`` for what the log does not contain.

    Args:
        steps: Number of optimiser steps.
        seconds: Run time in seconds; ``None`` for a resumed training.
        tokens: Number of training tokens, prompts included.
        tokens_per_second: Median over log events, for all devices together.
        reference_tokens: Number of tokens that passed through the reference as well.
        reference_share: Ratio of ``reference_tokens`` to ``tokens``.
    """

    steps: int | None
    seconds: float | None
    tokens: int | None
    tokens_per_second: float | None
    reference_tokens: int | None
    reference_share: float | None


@dataclass(frozen=True)
class Training:
    """The curves by name, and the cost."""

    curves: Mapping[str, Curve]
    cost: Cost


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Return the events of a log; a last line that was cut off by a kill is skipped."""
    return [event for event in whole_lines(Path(path)) if _is_number(event.get("step"))]


def training_of(events: Sequence[Mapping[str, Any]], *, resumed: bool) -> Training:
    """Return curves and cost.

    Args:
        events: Events of :func:`read_log`.
        resumed: Whether the run was resumed, so that the logged run time covers its last part only.
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
