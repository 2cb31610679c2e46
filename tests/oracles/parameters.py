"""The penalties on a LoRA layer's weights and their gradients, in loops over floats.

    squared update   sum_oi (s sum_r B[o][r] A[r][i])^2        gradient by the product rule, entry by entry
    weighted update  sum_oi F[o][i] (s sum_r B[o][r] A[r][i])^2      gradient by the product rule, entry by entry
    overlap          I · sum_or (sum_i W[o][i] A[r][i])^2 / (sum W^2 · sum A^2)      gradient by the quotient rule

A is R × I, B is O × R, W and F are O × I. Nothing is imported from the package, and there are no tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Matrix = Sequence[Sequence[float]]


def squared_update(A: Matrix, B: Matrix, scale: float) -> tuple[float, list[list[float]], list[list[float]]]:
    """Return the value, and its gradients with respect to A and B."""
    rank, columns, outs = len(A), len(A[0]), len(B)
    update = [[scale * math.fsum(B[o][r] * A[r][i] for r in range(rank)) for i in range(columns)] for o in range(outs)]
    value = math.fsum(u * u for row in update for u in row)
    gradient_A = [
        [math.fsum(2 * update[o][i] * scale * B[o][r] for o in range(outs)) for i in range(columns)]
        for r in range(rank)
    ]
    gradient_B = [
        [math.fsum(2 * update[o][i] * scale * A[r][i] for i in range(columns)) for r in range(rank)]
        for o in range(outs)
    ]
    return value, gradient_A, gradient_B


def overlap(W: Matrix, A: Matrix) -> tuple[float, list[list[float]]]:
    """Return the value, and its gradient with respect to A."""
    rank, columns, outs = len(A), len(A[0]), len(W)
    product = [[math.fsum(W[o][i] * A[r][i] for i in range(columns)) for r in range(rank)] for o in range(outs)]
    numerator = math.fsum(x * x for row in product for x in row)
    size_W, size_A = (math.fsum(x * x for row in matrix for x in row) for matrix in (W, A))
    gradient = [
        [
            columns * (2 * math.fsum(product[o][r] * W[o][i] for o in range(outs)) * size_A - numerator * 2 * A[r][i])
            / (size_W * size_A**2)
            for i in range(columns)
        ]
        for r in range(rank)
    ]  # fmt: skip
    return columns * numerator / (size_W * size_A), gradient


def weighted_update(
    A: Matrix, B: Matrix, F: Matrix, scale: float
) -> tuple[float, list[list[float]], list[list[float]]]:
    """``sum_oi F[o][i] (s sum_r B[o][r] A[r][i])^2``, and its gradients with respect to A and B."""
    rank, columns, outs = len(A), len(A[0]), len(B)
    update = [[scale * math.fsum(B[o][r] * A[r][i] for r in range(rank)) for i in range(columns)] for o in range(outs)]
    value = math.fsum(F[o][i] * update[o][i] ** 2 for o in range(outs) for i in range(columns))
    gradient_A = [
        [math.fsum(2 * F[o][i] * update[o][i] * scale * B[o][r] for o in range(outs)) for i in range(columns)]
        for r in range(rank)
    ]
    gradient_B = [
        [math.fsum(2 * F[o][i] * update[o][i] * scale * A[r][i] for i in range(columns)) for r in range(rank)]
        for o in range(outs)
    ]
    return value, gradient_A, gradient_B
