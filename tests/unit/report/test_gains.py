"""Do gains point the right way, and are their bounds as wide as so few items ask for?"""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest

from selfaug.report.gains import Gain, Measured, mean_gain, measured
from tests.made_runs import Value, part, results, usual_parts


def one(unit: str, higher: bool, base: list[Value], tuned: list[Value]) -> Measured:
    body, _ = part("p", "task", {"m": (unit, higher, base, tuned)})
    return next(measured(results({"p": body})))


def test_a_gain_is_positive_where_the_tuned_model_is_better() -> None:
    rng = np.random.default_rng(0)
    base, tuned = (rng.random(50) + shift for shift in (0.0, 1.0))
    up = one("nats/token", True, list(base), list(tuned)).gain
    down = one("nats/token", False, list(base), list(tuned)).gain
    assert up is not None
    assert down is not None
    assert up.value == pytest.approx(float(tuned.mean() - base.mean()))
    assert (down.value, down.low, down.high) == (-up.value, -(up.high or 0), -(up.low or 0))
    assert up.low is not None
    assert up.low < up.value < (up.high or 0)
    assert (up.direction, down.direction) == ("gain", "loss")


@pytest.mark.parametrize(("unit", "width"), [("fraction", 1.0), ("score", 2.0)])
@pytest.mark.parametrize("n", [10, 40, 1000])
def test_items_that_never_change_still_allow_for_a_rare_change(unit: str, width: float, n: int) -> None:
    found = one(unit, True, [0.0, 1.0] * (n // 2), [0.0, 1.0] * (n // 2))
    gain, conservative = found.gain, found.conservative
    assert gain is not None
    assert conservative is not None
    assert (gain.low, gain.high, gain.direction) == (0.0, 0.0, "none")
    assert conservative.direction == "unclear"
    # A change with this chance is missed by n items with chance 0.025.
    chance = (conservative.high or 0) / width
    assert (1 - chance) ** n == pytest.approx(0.025)
    assert conservative.low == -(conservative.high or 0)


def test_few_items_get_students_interval() -> None:
    base, tuned = [0.0] * 4, [1.0, 2.0, 3.0, 6.0]
    conservative = one("nats/token", True, list(base), list(tuned)).conservative
    assert conservative is not None
    # t of 3 degrees of freedom at 97.5 %, from a printed table; the bootstrap's own spread has 1 % of noise.
    half = 3.182 * statistics.stdev(tuned) / 2
    assert (conservative.high or 0) - conservative.value == pytest.approx(half, rel=0.03)
    gain = one("nats/token", True, list(base), list(tuned)).gain
    assert gain is not None
    assert (gain.high or 0) - gain.value < 0.8 * half


def test_identical_models_have_a_difference_of_exactly_nothing() -> None:
    same: list[Value] = [[3.0, 2], [4.0, 1], [1.0, 5]]
    found = one("nats/token", False, same, same).gain
    assert found is not None
    assert (found.value, found.direction, math.copysign(1, found.value)) == (0.0, "none", 1.0)


def test_without_an_interval_nothing_is_clear() -> None:
    body, _ = part("p", "task", {"m": ("fraction", True, [1.0, None], [0.0, None])})
    found = next(measured(results({"p": body})))
    for gain in (found.gain, found.conservative):
        assert gain is not None
        assert (gain.low, gain.high, gain.direction, gain.because) == (None, None, "unclear", "too few items count")


def gain(value: float, low: float | None, high: float | None, unit: str = "fraction", n: int = 100) -> Gain:
    return Gain(value, low, high, unit, 0.5, n)


def test_the_mean_of_gains_by_hand() -> None:
    found = mean_gain([gain(0.10, 0.07, 0.16, n=50), gain(-0.02, -0.06, 0.06)])
    assert (found.value, found.n, found.members) == (pytest.approx(0.04), 50, 2)
    # sqrt(0.03² + 0.04²) / 2 and sqrt(0.06² + 0.08²) / 2
    assert found.low == pytest.approx(0.04 - 0.025)
    assert found.high == pytest.approx(0.04 + 0.05)
    alone = gain(0.1, 0.0, 0.2)
    assert mean_gain([alone]) is alone


def test_the_mean_has_bounds_that_a_simulation_confirms() -> None:
    rng = np.random.default_rng(1)
    sizes = (0.02, 0.05, 0.03)
    drawn = np.stack([rng.normal(0.1, size, 200_000) for size in sizes]).mean(axis=0)
    low, high = np.quantile(drawn, [0.025, 0.975])
    found = mean_gain([gain(0.1, 0.1 - 1.96 * size, 0.1 + 1.96 * size) for size in sizes])
    assert found.low == pytest.approx(low, abs=5e-4)
    assert found.high == pytest.approx(high, abs=5e-4)


def test_a_mean_needs_one_unit_and_every_interval() -> None:
    with pytest.raises(ValueError, match="one unit"):
        mean_gain([gain(0.1, 0, 1), gain(0.1, 0, 1, unit="nats/token")])
    with pytest.raises(ValueError, match="one unit"):
        mean_gain([])
    found = mean_gain([gain(0.1, 0, 1), Gain(0.2, None, None, "fraction", 0.5, 9, because="too few")])
    assert (found.low, found.because, found.value) == (None, "too few", pytest.approx(0.15))


def test_every_metric_is_found_with_the_leading_one_first_and_subtasks_last() -> None:
    parts = {name: body for name, (body, _) in usual_parts().items()}
    body: dict[str, Any] = parts["general:arc"]
    body["metrics"] = {"other": {**body["metrics"]["acc"], "primary": False}, **body["metrics"]}
    body["subtasks"] = {"easy": {"acc": {**body["metrics"]["acc"], "primary": False}}}
    names = [(one.part, one.subtask, one.metric) for one in measured(results(parts))]
    assert names[:2] == [("task", None, "f1"), ("task", None, "answer_nll")]
    arc = [name[1:] for name in names if name[0] == "general:arc"]
    assert arc == [(None, "acc"), (None, "other"), ("easy", "acc")]
