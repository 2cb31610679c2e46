"""Do the bounds on lost and gained items hold under noise alone, and with planted losses?"""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from selfaug.common.flips import Flips, beyond_noise, flips
from selfaug.common.statistics import Items
from selfaug.evaluation.results import metric
from selfaug.report.gate import check, parse_rule
from tests.made_runs import part, results

RUNS = 2000


def chance(k: int, m: int) -> float:
    """P(Binomial(m, 1/2) >= k), from its definition."""
    return sum(math.comb(m, i) for i in range(k, m + 1)) / 2**m


@pytest.mark.parametrize(("flipped", "back"), [(0, 0), (1, 0), (5, 0), (6, 0), (30, 2), (17, 17), (3, 40), (60, 30)])
def test_the_bound_is_the_smallest_number_that_noise_allows(flipped: int, back: int) -> None:
    allowed = [x for x in range(flipped + 1) if chance(flipped - x, flipped - x + back) > 0.025]
    assert beyond_noise(flipped, back) == allowed[0]


@pytest.mark.parametrize("planted", [0, 24])
def test_noise_alone_rarely_exceeds_the_bound_and_planted_losses_are_found(planted: int) -> None:
    """Both models answer each item with the item's own probability; ``planted`` items were right and are wrong now."""
    rng = np.random.default_rng(planted)
    exceeded = found = both = 0
    for _ in range(RUNS):
        p = rng.beta(0.5, 0.5, 120)
        base = [*(rng.random(120) < p).astype(float), *[1.0] * planted]
        tuned = [*(rng.random(120) < p).astype(float), *[0.0] * planted]
        turned = flips(Items.of(base), Items.of(tuned))
        assert turned is not None
        both += turned.lost + turned.gained - planted
        exceeded += turned.surely_lost > planted
        found += turned.surely_lost > 0
    # E of p (1 - p) is 1/8 under Beta(1/2, 1/2), so noise flips a quarter of all items, half of them each way.
    assert both / RUNS / 120 == pytest.approx(0.25, abs=0.005)
    # At most 2.5 % by design; with 2,000 runs five standard deviations above it are 4.2 %.
    assert exceeded / RUNS < 0.042
    assert found / RUNS < 0.042 if not planted else found / RUNS > 0.5


def test_a_bound_without_the_noise_of_the_other_direction_would_exceed_it() -> None:
    """The check of the check: all lost items taken for the tuning's, the error is the rule under noise alone."""
    rng = random.Random(5)
    wrong = 0
    for _ in range(200):
        base, tuned = ([float(rng.random() < 0.5) for _ in range(120)] for _ in range(2))
        turned = flips(Items.of(base), Items.of(tuned))
        wrong += turned is not None and turned.lost > 0
    assert wrong > 190


def test_only_items_that_are_right_or_wrong_flip() -> None:
    assert flips(Items.of([1.0, 0.0, None, 1.0]), Items.of([0.0, 1.0, 1.0, 1.0])) == Flips(1, 1, 3)
    assert flips(Items.of([1.0, 0.5]), Items.of([1.0, 1.0])) is None
    assert flips(Items.of([[10.0, 8]]), Items.of([[9.0, 8]])) is None
    fraction = {"unit": "fraction", "higher_is_better": True}
    entry = metric(Items.of([1.0] * 9 + [0.0]), Items.of([0.0] * 9 + [1.0]), **fraction)  # type: ignore[arg-type]
    assert entry is not None
    assert entry["flips"] == {"lost": 9, "gained": 1, "n": 10, "surely_lost": beyond_noise(9, 1), "surely_gained": 0}


def of_parts(**parts: tuple[list[float], list[float]]) -> dict:
    made = {
        f"general:{name}": part(f"general:{name}", "general", {"acc": ("fraction", True, base, tuned)})[0]
        for name, (base, tuned) in parts.items()
    }
    return results(made)


def test_the_gate_decides_on_lost_items_where_the_mean_shows_nothing() -> None:
    same_mean = of_parts(arc=([1.0] * 20 + [0.0] * 20 + [1.0] * 60, [0.0] * 20 + [1.0] * 20 + [1.0] * 60))
    assert same_mean["parts"]["general:arc"]["metrics"]["acc"]["difference"]["value"] == 0
    lost = of_parts(arc=([1.0] * 50, [0.0] * 20 + [1.0] * 30), mmlu=([1.0] * 50, [0.0] * 4 + [1.0] * 46))
    for found, rule, verdicts in (
        (same_mean, "general=20", ["pass"]),
        (same_mean, "general=3", ["undecided"]),
        (same_mean, "general:arc=20%", ["pass"]),
        (lost, "general=24", ["pass"]),
        (lost, "general=3", ["fail"]),
        (lost, "general:*=4", ["fail", "pass"]),
        (lost, "general=12%", ["fail"]),
    ):
        checks, _ = check(parse_rule("max-lost", rule), found)
        assert [one.verdict for one in checks] == verdicts, rule
    assert beyond_noise(24, 0) > 12
