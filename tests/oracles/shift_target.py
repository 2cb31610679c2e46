"""The weights that `align_target` finds, from the sums and counts of all steps so far, without a class or its state.

shift_t = sum_s k^(t-s) nats_s / sum_s k^(t-s) tokens_s,   k = 1 / (1 + f)
E       = the last shift with left >= 0.9, at least the target; the target where there is none
e_t     = log(shift_t / target) - left_t / 0.9 log(E / target) cut to [-1.25, 1.25], for left_t < 0.9; else 0
alpha   = start exp(1.6 sum_{s <= t} e_s / (s + 1)), while the sum stays within its bounds
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def shifts(nats: Sequence[float], tokens: Sequence[float], share: float) -> list[float | None]:
    """The estimate after each step; None before anything is drawn."""
    found: list[float | None] = []
    for t in range(len(nats)):
        ages = t - np.arange(t + 1)
        decay = (1.0 + share) ** -ages.astype(float)
        count = float(decay @ np.asarray(tokens[: t + 1], dtype=float))
        found.append(float(decay @ np.asarray(nats[: t + 1], dtype=float)) / count if count else None)
    return found


def alphas(
    nats: Sequence[float], tokens: Sequence[float], left: Sequence[float], target: float, start: float, share: float
) -> list[float]:
    """The weight of each step, the first one included, and of the one after the last."""
    estimates = shifts(nats, tokens, share)
    early = [shift for shift, part in zip(estimates, left, strict=True) if part >= 0.9 and shift is not None]
    rise = np.log(max([target, *early[-1:]]) / target)
    errors = [
        np.clip(np.log(max(shift, 1e-9 * target) / target) - part / 0.9 * rise, -1.25, 1.25)
        if shift is not None and part < 0.9
        else 0.0
        for shift, part in zip(estimates, left, strict=True)
    ]
    gains = 1.6 / np.arange(1, len(nats) + 1)
    return [start, *(start * np.exp(np.cumsum(gains * np.array(errors)))).tolist()]
