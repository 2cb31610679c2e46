"""The weights that `align_target` finds, from the sums and counts of all steps so far, without state between steps.

shift_t = sum_s k^(t-s) nats_s / sum_s k^(t-s) tokens_s,   k = 1 / (1 + f)
e_t     = shift_t / target - 1, cut to [-1, 1]; 0 while nothing was drawn
alpha   = start · exp(0.6 e_t + 0.1 · sum_{s <= t} eta_s e_s), while the sum stays within its bounds
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
    nats: Sequence[float], tokens: Sequence[float], rates: Sequence[float], target: float, start: float, share: float
) -> list[float]:
    """The weight of each step, the first one included, and of the one after the last."""
    found, errors = [start], []
    for shift in shifts(nats, tokens, share):
        errors.append(0.0 if shift is None else float(np.clip(shift / target - 1.0, -1.0, 1.0)))
        integral = float(np.dot(rates[: len(errors)], errors))
        found.append(start * float(np.exp(0.6 * errors[-1] + 0.1 * integral)))
    return found
