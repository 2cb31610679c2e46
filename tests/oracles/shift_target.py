"""The weights that `align_target` finds, from the sums and counts of all steps so far, without a class or its state.

shift_t = sum_s k^(t-s) nats_s / sum_s k^(t-s) tokens_s,   k = 1 / (1 + f)
v_t     = shift_t / (target (1 + left_t^3)) - 1; 0 while nothing was drawn
e_t     = v_t cut to [-1, 1];   c_t = 1 + 10 (v_t - v_(t-1)) / v_t cut to [0, 1], v_0 = 0
alpha   = start exp(0.6 e_t + 0.15 sum_{s <= t} left_s c_s e_s), while the sum stays within its bounds
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
    v = np.array(
        [
            0.0 if shift is None else shift / (target * (1.0 + part**3)) - 1.0
            for shift, part in zip(shifts(nats, tokens, share), left, strict=True)
        ]
    )
    e, gone = np.clip(v, -1.0, 1.0), np.diff(v, prepend=0.0)
    c = np.clip(1.0 + 10.0 * np.divide(gone, v, out=np.zeros_like(v), where=v != 0), 0.0, 1.0)
    return [start, *(start * np.exp(0.6 * e + 0.15 * np.cumsum(np.asarray(left) * c * e))).tolist()]
