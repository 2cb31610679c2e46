"""Is a rival that dominates found, and is either statement wrong as seldom as it says?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats

from selfaug.common.statistics import Estimate, two_way
from selfaug.study.dominance import LEVEL, dominance
from selfaug.study.front import dominates


def made(truth: dict[str, tuple[float, float]], rng: Any, *, seeds: int) -> dict[str, Any]:
    """Scores (2 × seeds) of each setting around the truth; half of the variance is the seed's, the same for all."""
    shared = rng.normal(0, 1, (2, seeds))
    return {name: np.array(each)[:, None] + shared + rng.normal(0, 1, (2, seeds)) for name, each in truth.items()}


def split(scores: dict[str, Any]) -> Any:
    def gap(rival: str, own: str) -> tuple[Estimate, Estimate]:
        first, second = scores[rival] - scores[own]
        return two_way(first, []), two_way(second, [])

    owns = [name for name in scores if name.startswith("own")]
    return dominance({(rival, own): gap(rival, own) for rival in scores for own in owns if rival not in owns})


def test_what_is_far_apart_is_decided() -> None:
    rng = np.random.default_rng(0)
    truth = {"own a": (0.0, 0.0), "own b": (-30.0, 60.0), "trade": (50.0, -50.0), "worse": (-80.0, -80.0)}
    found = split(made(truth, rng, seeds=5))
    assert len(found.pairs) == 4
    assert found.p_none <= LEVEL
    assert not any(pair.in_means for pair in found.pairs)
    better = split(made({**truth, "better": (60.0, 60.0)}, rng, seeds=5))
    beaten = {(pair.rival, pair.own) for pair in better.pairs if pair.in_means and pair.p_dominates <= LEVEL}
    assert beaten == {("better", "own a")}
    assert better.p_none > 0.9
    assert better.nearest.rival == "better"


def test_means_decide_who_dominates_and_equal_scores_do_not() -> None:
    rng = np.random.default_rng(1)
    scores = made({"own": (0.0, 0.0), "p": (1.0, 1.0), "q": (0.0, 2.0), "r": (-1.0, 0.5)}, rng, seeds=3)
    for pair in split(scores).pairs:
        means = [tuple(scores[name].mean(axis=1)) for name in (pair.rival, pair.own)]
        assert pair.in_means == dominates(*means)
    (pair,) = split({"own": np.zeros((2, 3)), "same": np.zeros((2, 3))}).pairs
    assert (pair.in_means, pair.p_dominates, pair.p_free) == (False, 1.0, 1.0)
    assert dominance({}) is None


def test_p_values_are_the_textbooks_with_holms_correction() -> None:
    scores = made(
        {"own": (0.0, 0.0), "p": (2.0, 2.0), "q": (1.0, 3.0), "r": (-1.0, 0.5)}, np.random.default_rng(2), seeds=4
    )
    found = {pair.rival: pair for pair in split(scores).pairs}

    def student(name: str, axis: int, side: str) -> float:
        return float(scipy.stats.ttest_rel(scores[name][axis], scores["own"][axis], alternative=side).pvalue)

    both = {name: max(student(name, axis, "greater") for axis in (0, 1)) for name in "pqr"}
    holm, so_far = {}, 0.0
    for factor, name in zip((3, 2, 1), sorted(both, key=both.__getitem__), strict=True):
        so_far = max(so_far, min(1.0, factor * both[name]))
        holm[name] = so_far
    assert len({round(p, 9) for p in holm.values()}) > 1
    for name in "pqr":
        assert found[name].p_dominates == pytest.approx(holm[name])
        assert found[name].p_free == pytest.approx(min(1.0, 2 * min(student(name, axis, "less") for axis in (0, 1))))


@pytest.mark.parametrize("seeds", [3, 5])
def test_neither_statement_is_wrong_more_often_than_it_says(seeds: int) -> None:
    """At the edges of what they deny: a rival level on both axes; rivals ahead on one and level on the other."""
    rng = np.random.default_rng(seeds)
    trials, says_none, says_beaten = 300, 0, 0
    level = {"own": (0.0, 0.0), "level": (0.0, 0.0), "far": (-50.0, 50.0)}
    ahead = {"own a": (0.0, 0.0), "own b": (0.0, 0.0), **{f"r{i}": (50.0, 0.0) for i in range(8)}}
    for _ in range(trials):
        says_none += split(made(level, rng, seeds=seeds)).p_none <= LEVEL
        found = split(made(ahead, rng, seeds=seeds)).pairs
        says_beaten += any(pair.in_means and pair.p_dominates <= LEVEL for pair in found)
    for wrong in (says_none, says_beaten):  # 5 % of 300 are 15, and 11 are three standard deviations
        assert wrong <= 26
