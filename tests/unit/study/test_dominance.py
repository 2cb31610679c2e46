"""Is a rival that dominates found, and is either statement wrong as seldom as it says?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from selfaug.common.statistics import seed_noise
from selfaug.study.dominance import LEVEL, dominance
from selfaug.study.front import dominates


def made(truth: dict[str, tuple[float, float]], rng: Any, *, seeds: int, draws: int = 400) -> dict[str, Any]:
    """Scores of each setting over seeds around the truth, and draws of their error."""
    noise = rng.normal(0, 1, (len(truth), 2, seeds)) + rng.normal(0, 1, (1, 2, seeds))  # half of it is the seed's
    values = np.array(list(truth.values()))[:, :, None] + noise
    means = values.mean(axis=2)
    deviations = [values[i, axis] - means[i, axis] for i in range(len(truth)) for axis in (0, 1)]
    errors = np.array(seed_noise(deviations, draws, rng)).reshape(len(truth), 2, draws)
    return {name: (means[i], means[i][:, None] + errors[i]) for i, name in enumerate(truth)}


def split(scores: dict[str, Any]) -> Any:
    return dominance(
        {name: each for name, each in scores.items() if name.startswith("own")},
        {name: each for name, each in scores.items() if not name.startswith("own")},
    )


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
        assert pair.in_means == dominates(tuple(scores[pair.rival][0]), tuple(scores[pair.own][0]))
    still = (np.zeros(2), np.zeros((2, 50)))
    (pair,) = dominance({"own": still}, {"same": still}).pairs  # type: ignore[union-attr]
    assert (pair.in_means, pair.p_dominates, pair.p_free) == (False, 1.0, 1.0)
    assert dominance({"own": still}, {}) is None


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
