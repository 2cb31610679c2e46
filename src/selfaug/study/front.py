"""The Pareto front of points, and the hypervolume of a curve.

Higher is better on both axes. The reference point is (0, 0).
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["dominates", "hypervolume", "pareto"]

Point = tuple[float, float]


def dominates(one: Point, other: Point) -> bool:
    """Whether ``one`` is at least as good as ``other`` on both axes, and better on one."""
    return one[0] >= other[0] and one[1] >= other[1] and one != other


def pareto(points: Sequence[Point]) -> list[int]:
    """Return the indices of the points that no other dominates, in order; equal points are all kept."""
    return [i for i, point in enumerate(points) if not any(dominates(other, point) for other in points)]


def hypervolume(points: Sequence[Point]) -> float:
    """``area of ∪ [0, x] × [0, y]`` over the points with x > 0 and y > 0; 0 without any.

    Source: Zitzler and Thiele 1998, in two dimensions and for maximisation.
    """
    area, highest = 0.0, 0.0
    for x, y in sorted(((x, y) for x, y in points if x > 0 and y > 0), reverse=True):
        if y > highest:
            area += x * (y - highest)
            highest = y
    return area
