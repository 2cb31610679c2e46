"""Front and area against brute force."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from selfaug.study.front import dominates, hypervolume, pareto

POINTS = st.lists(st.tuples(*[st.integers(-3, 8)] * 2), max_size=7)


@given(POINTS)
def test_the_area_is_that_of_the_union_of_rectangles(points: list[tuple[int, int]]) -> None:
    cells = {
        (x, y) for right, top in points for x, y in itertools.product(range(max(right, 0)), range(max(top, 0)))
    }  # unit squares under any point
    assert hypervolume(points) == len(cells)


@given(POINTS)
def test_the_front_holds_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    found = set(pareto(points))
    for i, (x, y) in enumerate(points):
        beaten = any((a >= x and b > y) or (a > x and b >= y) for a, b in points)
        assert (i in found) == (not beaten)
    assert bool(found) == bool(points)


def test_by_hand() -> None:
    assert hypervolume([]) == 0
    assert hypervolume([(1, 0), (0, 1)]) == 0
    assert np.isclose(hypervolume([(1.0, 0.5), (0.5, 1.0), (0.4, 0.4)]), 0.75)
    assert dominates((1, 1), (1, 0))
    assert not dominates((1, 1), (1, 1))
