"""Intruder dimensions of one weight, shrunk, in float64 with numpy; nothing is imported from the package or PEFT.

u_j, s_j, v_j of W + D, j <= top, is new where |u_j · w_i| < cosine for every left singular vector w_i of W
D' = D - (1 - scale) sum_new s_j u_j v_j^T, cut to its `rank` strongest triples
"""

from __future__ import annotations

import numpy as np


def shrunk(
    W: np.ndarray, D: np.ndarray, rank: int, top: int, cosine: float, scale: float
) -> tuple[np.ndarray, list[int]]:
    """Return D', and which j are new."""
    own = np.linalg.svd(W, full_matrices=False)[0].T
    U, S, Vh = np.linalg.svd(W + D, full_matrices=False)
    new = [j for j in range(min(top, len(S))) if max(abs(float(w @ U[:, j])) for w in own) < cosine]
    if not new:
        return D, new
    changed = D.copy()
    for j in new:
        changed -= (1 - scale) * S[j] * np.outer(U[:, j], Vh[j])
    U, S, Vh = np.linalg.svd(changed, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vh[:rank], new
