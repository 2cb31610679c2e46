"""What do a LoRA layer's own weights cost, and what is the slope, in loops over floats?

    squared update   sum_oi (s sum_r B[o][r] A[r][i])^2        slope by the product rule, entry by entry
    weighted update  sum_oi F[o][i] (s sum_r B[o][r] A[r][i])^2      slope by the product rule, entry by entry
    overlap          I · sum_or (sum_i W[o][i] A[r][i])^2 / (sum W^2 · sum A^2)      slope by the quotient rule

A has R rows and I columns, B O rows and R columns, W and F O rows and I columns. Nothing from the package, no tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Matrix = Sequence[Sequence[float]]


def squared_update(A: Matrix, B: Matrix, scale: float) -> tuple[float, list[list[float]], list[list[float]]]:
    """The value, and its slopes with respect to A and B."""
    rank, columns, outs = len(A), len(A[0]), len(B)
    update = [[scale * math.fsum(B[o][r] * A[r][i] for r in range(rank)) for i in range(columns)] for o in range(outs)]
    value = math.fsum(u * u for row in update for u in row)
    slope_A = [
        [math.fsum(2 * update[o][i] * scale * B[o][r] for o in range(outs)) for i in range(columns)]
        for r in range(rank)
    ]
    slope_B = [
        [math.fsum(2 * update[o][i] * scale * A[r][i] for i in range(columns)) for r in range(rank)]
        for o in range(outs)
    ]
    return value, slope_A, slope_B


def overlap(W: Matrix, A: Matrix) -> tuple[float, list[list[float]]]:
    """The value, and its slope with respect to A."""
    rank, columns, outs = len(A), len(A[0]), len(W)
    seen = [[math.fsum(W[o][i] * A[r][i] for i in range(columns)) for r in range(rank)] for o in range(outs)]
    above = math.fsum(x * x for row in seen for x in row)
    size_W, size_A = (math.fsum(x * x for row in matrix for x in row) for matrix in (W, A))
    slope = [
        [
            columns * (2 * math.fsum(seen[o][r] * W[o][i] for o in range(outs)) * size_A - above * 2 * A[r][i])
            / (size_W * size_A**2)
            for i in range(columns)
        ]
        for r in range(rank)
    ]  # fmt: skip
    return columns * above / (size_W * size_A), slope


def weighted_update(
    A: Matrix, B: Matrix, F: Matrix, scale: float
) -> tuple[float, list[list[float]], list[list[float]]]:
    """``sum_oi F[o][i] (s sum_r B[o][r] A[r][i])^2``, and its slopes with respect to A and B."""
    rank, columns, outs = len(A), len(A[0]), len(B)
    update = [[scale * math.fsum(B[o][r] * A[r][i] for r in range(rank)) for i in range(columns)] for o in range(outs)]
    value = math.fsum(F[o][i] * update[o][i] ** 2 for o in range(outs) for i in range(columns))
    slope_A = [
        [math.fsum(2 * F[o][i] * update[o][i] * scale * B[o][r] for o in range(outs)) for i in range(columns)]
        for r in range(rank)
    ]
    slope_B = [
        [math.fsum(2 * F[o][i] * update[o][i] * scale * A[r][i] for i in range(columns)) for r in range(rank)]
        for o in range(outs)
    ]
    return value, slope_A, slope_B
