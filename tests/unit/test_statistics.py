"""Do values, standard errors and intervals agree with independent computations, and do intervals cover?"""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from selfaug.common.statistics import Items, difference, interval, ratios, seed_noise, standard_error, value

scores = st.lists(st.floats(-5, 5), min_size=2, max_size=30)


@given(scores)
def test_mean_and_its_error_are_the_textbook_ones(values: list[float]) -> None:
    items = Items.of(values)
    assert value(items) == pytest.approx(statistics.fmean(values), abs=1e-12)
    expected = statistics.stdev(values) / math.sqrt(len(values))
    assert standard_error(items) == pytest.approx(expected, abs=1e-12)


def test_a_ratio_skips_items_that_do_not_count() -> None:
    # Precision: two abstentions, one of them right; the answers in between do not count.
    items = Items.of([1, None, [0, 1], None, [0, 0]])
    assert value(items) == 0.5
    assert items.count == 2
    assert value(Items.of([[6.0, 2], [2.0, 6]])) == 1.0  # nats per token, not the mean of 3 and 1/3


def test_nothing_to_count_gives_no_number() -> None:
    empty = Items.of([None, [0, 0]])
    assert value(empty) is None
    assert standard_error(empty) is None
    assert difference([(empty, empty)]) is None
    single = Items.of([1.0])
    found = difference([(single, single)])
    assert found is not None
    assert found.value == 0
    assert found.interval is None


@given(scores, st.integers(0, 5))
def test_equal_models_differ_by_exactly_nothing(values: list[float], seed: int) -> None:
    items = Items.of([[v, abs(v) + 1] for v in values])
    found = difference([(items, items)], resamples=50, seed=seed)
    assert found is not None
    assert (found.value, found.stderr, found.interval) == (0.0, 0.0, (0.0, 0.0))


def test_pairing_removes_what_both_models_share() -> None:
    rng = np.random.default_rng(1)
    hard_n = rng.normal(0, 10, 300)
    base, tuned = Items.of(list(hard_n)), Items.of(list(hard_n + 1 + rng.normal(0, 0.1, 300)))
    found = difference([(base, tuned)])
    assert found is not None
    assert found.stderr is not None
    spread = standard_error(base)
    assert spread is not None
    assert spread > 0.4  # precondition: unpaired, the difference of 1 would be lost in this
    assert found.stderr == pytest.approx(0.1 / math.sqrt(300), rel=0.2)
    assert found.interval is not None
    assert 0.97 < found.interval[0] < found.value < found.interval[1] < 1.03


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    held = 0
    for trial in range(200):
        truth_n = rng.normal(0.3, 1, 80)
        base_n = rng.normal(0, 1, 80)
        found = difference([(Items.of(list(base_n)), Items.of(list(base_n + truth_n)))], resamples=400, seed=trial)
        assert found is not None
        assert found.interval is not None
        held += found.interval[0] <= 0.3 <= found.interval[1]
    # 95 % of 200 is 190; three standard deviations of a binomial are 9, and percentile intervals run a little short.
    assert 176 <= held <= 199


def _runs(count: int, items: int, between: float) -> list[tuple[Items, Items]]:
    rng = np.random.default_rng(3)
    runs = []
    for _ in range(count):
        effect = rng.normal(0, between)
        base_n = rng.normal(0, 1, items)
        runs.append((Items.of(list(base_n)), Items.of(list(base_n + effect + rng.normal(0, 0.1, items)))))
    return runs


@pytest.mark.parametrize("shared", [True, False])
def test_seeds_widen_the_interval(shared: bool) -> None:
    runs = _runs(6, 50, between=1.0)
    alone = [difference([run], resamples=500) for run in runs]
    together = difference(runs, resamples=2000, shared_items=shared)
    assert together is not None
    assert together.stderr is not None
    assert all(one is not None and one.stderr is not None and one.stderr < 0.05 for one in alone)
    effects = [one.value for one in alone if one is not None]
    assert together.value == pytest.approx(statistics.fmean(effects))
    # The runs' own spread and a little of the items'; a bootstrap of six runs would see a tenth less of it.
    assert together.stderr == pytest.approx(statistics.stdev(effects) / math.sqrt(6), rel=0.02)
    assert together.interval is not None
    assert together.interval[1] - together.value == pytest.approx(2.571 * together.stderr, rel=0.02)  # t, 5 d.o.f.


def test_several_runs_have_the_textbooks_two_way_interval() -> None:
    """By hand: ratios, their linearisation by small steps, both variances, and Satterthwaite's degrees of freedom."""
    rng = np.random.default_rng(6)
    denominators = [int(d) for d in rng.integers(1, 6, 30)]

    def side(effect: float) -> Items:
        return Items.of([[float(x), d] for x, d in zip(rng.normal(effect, 1, 30), denominators, strict=True)])

    runs = [(side(0.0), side(float(rng.normal(0.5, 0.6)))) for _ in range(4)]
    found = difference(runs, shared_items=True)

    def gap(run: tuple[Items, Items], leave: int = 0, step: float = 0.0) -> float:
        weight = np.ones(30)
        weight[leave] += step
        base, tuned = ((weight @ items.numerator_n) / (weight @ items.denominator_n) for items in run)
        return float(tuned - base)

    gaps = [gap(run) for run in runs]
    pushes = [statistics.fmean(30 * (gap(run, i, 1e-6) - gap(run)) / 1e-6 for run in runs) for i in range(30)]
    by_runs, by_items = statistics.variance(gaps) / 4, statistics.variance(pushes) / 30
    freedom = (by_runs + by_items) ** 2 / (by_runs**2 / 3 + by_items**2 / 29)
    reach = float(scipy.stats.t.ppf(0.975, freedom)) * math.sqrt(by_runs + by_items)
    assert 3.2 < freedom < 29, "one of the two variances does not matter"
    assert found is not None
    assert found.stderr == pytest.approx(math.sqrt(by_runs + by_items), rel=1e-4)
    centre = statistics.fmean(gaps)
    assert found.interval == pytest.approx((centre - reach, centre + reach), rel=1e-3)


@pytest.mark.parametrize("runs", [3, 5])
def test_intervals_of_few_runs_hold_the_truth_as_often_as_they_say(runs: int) -> None:
    """Where runs vary alone, and where items vary as much: a percentile bootstrap of three held it in 0.7 to 0.8."""
    rng = np.random.default_rng(runs)
    zeros = Items(np.zeros(40), np.ones(40))
    for of_items in (0.01, 0.6 * math.sqrt(40 / runs)):
        held = 0
        for _ in range(400):
            shared_n, effects = rng.normal(0, of_items, 40), rng.normal(0, 0.6, runs)
            pairs = [(zeros, Items(shared_n + effect, np.ones(40))) for effect in effects]
            found = difference(pairs, shared_items=True)
            assert found is not None
            assert found.interval is not None
            held += found.interval[0] <= 0 <= found.interval[1]
        assert 367 <= held <= 398  # 95 % of 400 is 380, and 13 are three standard deviations


def test_noise_of_seeds_is_students_and_shared() -> None:
    rng = np.random.default_rng(0)
    deviation_R = np.array([-1.0, 0.25, 0.75])
    one, twice, missing, single = seed_noise(
        [deviation_R, 2 * deviation_R, np.array([-0.5, np.nan, 0.5]), np.array([0.0, np.nan, np.nan])], 100_000, rng
    )
    stderr = statistics.stdev(deviation_R) / math.sqrt(3)
    for share, quantile in ((0.9, 1.886), (0.975, 4.303)):  # t of two degrees of freedom
        assert np.quantile(one, share) == pytest.approx(quantile * stderr, rel=0.03)
    assert np.array_equal(twice, 2 * one)
    assert np.quantile(missing, 0.9) == pytest.approx(3.078 * 0.5, rel=0.03)  # one degree
    assert not single.any()


def test_shared_items_do_not_average_out() -> None:
    # One test set, ten runs that do the same: ten times the runs are not ten times the evidence.
    rng = np.random.default_rng(4)
    base_n, gain_n = rng.normal(0, 1, 40), rng.normal(0.2, 1, 40)
    run = (Items.of(list(base_n)), Items.of(list(base_n + gain_n)))
    one = difference([run], resamples=2000)
    shared = difference([run] * 10, resamples=2000, shared_items=True)
    apart = difference([run] * 10, resamples=2000)
    assert one is not None
    assert shared is not None
    assert apart is not None
    assert one.stderr == pytest.approx(shared.stderr, rel=0.1)
    assert apart.stderr is not None
    assert one.stderr is not None
    assert apart.stderr < 0.5 * one.stderr


def test_lists_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="same items"):
        difference([(Items.of([1.0, 2.0]), Items.of([1.0]))])
    two, three = Items.of([1.0, 2.0]), Items.of([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="different numbers"):
        difference([(two, two), (three, three)], shared_items=True)


def test_a_seed_gives_the_numbers_that_it_always_gave() -> None:
    """Results on disk are compared with new ones: these were computed by the first release."""
    base = Items.of([0, 1, [2, 3], None, 1, 0, [1, 4], 1])
    tuned = Items.of([1, 1, [3, 3], None, 0, 1, [2, 4], 1])
    for runs, shared, wanted in (
        ([(base, tuned)], False, (0.25, 0.1590691788001272, (-0.11111111111111105, 0.5201923076923068))),
    ):
        found = difference(runs, resamples=500, seed=7, shared_items=shared)
        assert found is not None
        # Sums may be added in another order by another version of numpy.
        assert found.value == pytest.approx(wanted[0], abs=1e-14)
        assert found.stderr == pytest.approx(wanted[1], rel=1e-12)
        assert found.interval == pytest.approx(wanted[2], rel=1e-12)


def test_an_interval_holds_the_share_and_forgives_one_value_in_a_hundred() -> None:
    drawn = np.arange(1001.0)
    assert interval(drawn) == pytest.approx((25.0, 975.0))
    assert interval(drawn, 0.1) == pytest.approx((100.0, 900.0))
    drawn[:10] = np.nan
    assert interval(drawn) is not None
    drawn[10:12] = np.inf
    assert interval(drawn) is None


def test_ratios_of_resamples_are_those_of_their_items() -> None:
    items = Items.of([1, [3, 4], None])
    found = ratios(items, np.array([[0, 1, 2], [1, 1, 1], [2, 2, 2]]))
    assert found[:2].tolist() == [4 / 5, 3 / 4]
    assert np.isnan(found[2])
