"""Tests of successive halving: its plan within the budget, its score by scaled updates, and who goes on."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest

from selfaug.common.errors import ConfigError
from selfaug.study.ladder import LEAST_STEPS, Candidate, Found, Rung, best, candidates, found_in, rungs


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9, 10])
@pytest.mark.parametrize("budget", [200, 901])
def test_all_runs_together_stay_within_the_budget_and_the_last_one_is_alone(count: int, budget: int) -> None:
    plan = rungs(count, budget)
    assert plan[0][0] == count
    assert plan[-1][0] == 1
    assert budget - count * len(plan) < sum(runs * steps for runs, steps in plan) <= budget
    assert all(later[0] == math.ceil(now[0] / 3) and later[1] >= now[1] for now, later in itertools.pairwise(plan))


def test_a_budget_of_which_nothing_can_be_told_is_refused_with_one_that_is_taken() -> None:
    assert rungs(9, 9 * 3 * LEAST_STEPS) == [(9, 5), (3, 15), (1, 45)]
    with pytest.raises(ConfigError, match="leaves 4 steps") as refused:
        rungs(9, 9 * 3 * LEAST_STEPS - 1)
    assert "give 135 or more" in refused.value.hint


def test_the_score_is_the_gain_of_an_update_scaled_to_the_allowed_shift() -> None:
    """A model whose gain is 3 s and whose shift is 0.2 s² at a factor s on its update."""
    whole = Found(before=5.0, after=2.0, shift=0.2)
    factor = math.sqrt(0.05 / 0.2)
    assert whole.score(0.05) == pytest.approx(3 * factor)
    assert whole.score(0.2) == whole.score(1.0) == 3.0
    assert Found(5.0, 2.0, 0.0).score(0.05) == 3.0
    assert Found(2.0, 5.0, 0.2).score(0.05) == -3.0, "a loss is not made smaller by a large shift"


def test_those_go_on_that_gain_most_for_their_shift() -> None:
    far, near, lost = Candidate(1.0, 0.5), Candidate(0.1, 2.0), Candidate(9.0, 2.0)
    found = {far: Found(5.0, 1.0, 0.8), near: Found(5.0, 3.0, 0.05), lost: Found(5.0, 7.0, 0.01)}
    assert best(found, 2, 0.05) == (near, far)
    assert best(found, 2, 10.0) == (far, near), "where the shift is allowed the gain alone counts"
    assert best(found, 9, 0.05)[-1] == lost


def test_the_defaults_come_first_and_no_pair_twice() -> None:
    pairs = candidates([1e-4, 1e-3, 1e-4], [2.0, 0.5])
    assert pairs[0] == Candidate(1e-4, 2.0)
    assert len(pairs) == len(set(pairs)) == 4


def test_a_run_is_measured_before_and_after_and_known_by_its_own_settings() -> None:
    rung = Rung(candidates([1e-4, 1e-3], [2.0]), 7, ("--held_out", "0.1"), 3)
    runs = rung.runs()
    assert len({run.name for run in runs}) == len({str(rung.fingerprints(run)) for run in runs}) == 2
    words = dict(zip(runs[1].train[::2], runs[1].train[1::2], strict=True))
    assert words == {
        "--held_out": "0.1", "--method": "selfaug", "--seed": "3", "--alpha": "2.0", "--learning_rate": "0.001",
        "--max_steps": "7", "--eval_strategy": "steps", "--eval_steps": "7", "--eval_on_start": "true",
    }  # fmt: skip
    longer = Rung(rung.candidates, 8, rung.train, 3)
    assert rung.run(rung.candidates[0]).name != longer.run(rung.candidates[0]).name


def test_a_log_without_a_finite_number_of_each_kind_tells_nothing(tmp_path: Path) -> None:
    def logged(*events: dict[str, float]) -> Found | None:
        (tmp_path / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        return found_in(tmp_path)

    start, end = {"step": 0, "eval_nll": 5.0}, {"step": 7, "eval_nll": 2.0}
    probes = {"step": 0, "probe_kl": 0.0}, {"step": 7, "probe_kl": 0.3}
    assert logged(start, *probes, end) == Found(5.0, 2.0, 0.3)
    assert logged(start, *probes) is None
    assert logged(start, end) is None
    assert logged(start, *probes, {**end, "eval_nll": math.nan}) is None
