"""Tests of the controller of `align_target`: its update by an oracle, its bounds, and a shift that it brings home."""

from __future__ import annotations

import math

import numpy as np
import pytest

from selfaug.common.errors import ConfigError
from selfaug.step.shift_target import ShiftTarget, check_target, first_weight
from tests.oracles import shift_target as oracle


@pytest.mark.parametrize("share", [1.0, 0.125])
def test_the_weights_are_the_oracles(share: float) -> None:
    draw = np.random.default_rng(3)
    tokens = (draw.integers(0, 3, 40) * draw.integers(1, 50, 40)).tolist()
    nats = [0.07 * n * float(draw.exponential()) for n in tokens]
    left = np.linspace(1.0, 0.0, 40).tolist()
    assert tokens[0] == 0 or 0 in tokens, "a step draws nothing"
    control, found, shifts = ShiftTarget(0.05, 2.0, share), [], []
    for step in zip(nats, tokens, left, strict=True):
        found.append(control.alpha)
        control.update(*step)
        shifts.append(control.shift)
    expected = oracle.alphas(nats, tokens, left, 0.05, 2.0, share)
    assert [*found, control.alpha] == pytest.approx(expected, rel=1e-12)
    assert shifts == pytest.approx(oracle.shifts(nats, tokens, share), rel=1e-12)
    assert max(expected) / min(expected) > 1.5, "the weight moves"
    # Planted: every step weighs alike whatever it drew; the target asked for from the start; another filter.
    means = [x / n if n else 0.0 for x, n in zip(nats, tokens, strict=True)]
    for wrong in (
        oracle.alphas(means, [1.0] * 40, left, 0.05, 2.0, share),
        oracle.alphas(nats, tokens, [0.0] * 40, 0.05, 2.0, share),
        oracle.alphas(nats, tokens, left, 0.05, 2.0, share / 2),
    ):
        assert wrong != pytest.approx(expected, rel=1e-2)


def test_a_divisor_that_forgets_the_fraction_is_seen() -> None:
    """Drawn sums over all tokens of the step: a shift eight times too small at f = 1/8."""
    right, wrong = ShiftTarget(0.05, 2.0, 0.125), ShiftTarget(0.05, 2.0, 0.125)
    for _ in range(50):
        right.update(0.05 * 100, 100, 0.5)
        wrong.update(0.05 * 100, 800, 0.5)
    assert right.alpha == pytest.approx(2.0, rel=1e-12)
    assert wrong.alpha < 0.1


@pytest.mark.parametrize("share", [1.0, 0.125])
@pytest.mark.parametrize("target", [0.002, 0.02, 0.2])
def test_the_shift_of_a_lagging_model_comes_to_the_target(target: float, share: float) -> None:
    """A model whose shift goes a twentieth of the way to 0.1 / alpha a step at the full rate, which then falls."""
    control, shift, steps = ShiftTarget(target, first_weight(target), share), 0.0, 200
    draw = np.random.default_rng(0)
    start = control.alpha
    for step in range(steps):
        rate = 1 - step / steps
        drawn = 10 * int(draw.binomial(16, share))
        shift += 0.1 * rate * (0.1 / control.alpha - shift)
        control.update(shift * drawn * math.exp(draw.normal(0, 0.1)), drawn, 1 - (step + 1) / steps)
    assert shift == pytest.approx(target, rel=0.15)
    assert abs(math.log(control.alpha / start)) > 0.5, "the starting weight would not have been right"


@pytest.mark.parametrize(("shift", "bound"), [(0.0, 1e-3), (10.0, 1e3)])
def test_a_target_out_of_reach_ends_at_a_bound_and_comes_back_at_once(shift: float, bound: float) -> None:
    control = ShiftTarget(0.05, 2.0)
    for _ in range(500):
        control.update(shift * 100, 100, 0.5)
    assert control.alpha == pytest.approx(bound)
    before = control.alpha
    for _ in range(10):  # no windup: the weight turns as soon as the shift does
        control.update((0.2 if not shift else 0.0) * 100, 100, 0.5)
    assert (control.alpha > before) if not shift else (control.alpha < before)


def test_a_checkpoint_holds_all_that_is_remembered() -> None:
    first, second = ShiftTarget(0.05, 2.0, 0.5), ShiftTarget(0.05, 2.0, 0.5)
    for nats, tokens in ((3.0, 40), (1.0, 7), (0.0, 0)):
        first.update(nats, tokens, 0.7)
    assert first.alpha != second.alpha
    second.load_tensors(first.tensors())
    for control in (first, second):
        control.update(2.0, 13, 0.3)
    assert (first.alpha, first.shift) == (second.alpha, second.shift)
    with pytest.raises(ConfigError, match="trained with a fixed one"):
        second.load_tensors({})


@pytest.mark.parametrize("target", [0.0, -0.1, math.inf, math.nan])
def test_what_is_no_shift_is_refused(target: float) -> None:
    with pytest.raises(ConfigError, match=r"align_target=.* is not a shift"):
        check_target(target, None, None)
