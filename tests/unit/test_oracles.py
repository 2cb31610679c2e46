"""Are the oracles right, and can the step's oracle tell each known mistake from the truth?"""

from __future__ import annotations

import math
import random

import pytest
import torch

from tests.models import tiny, with_lora
from tests.oracles import dense, rows
from tests.oracles.planted import PLANTED, Step
from tests.oracles.sequences import MULTI_TURN, ODD_SHAPES, SINGLE_TURN, sequences
from tests.oracles.step import positions, relative_distance

STEP_TOLERANCE = 1e-4  # the loosest tolerance under which a comparison with the step's oracle is made


def random_row(size: int, seed: int, spread: float = 3.0) -> list[float]:
    draw = random.Random(seed)
    return [draw.gauss(0.0, spread) for _ in range(size)]


@pytest.mark.parametrize("size", [2, 3, 17, 97])
@pytest.mark.parametrize("direction", [*rows.DIRECTIONS, "nll"])
def test_row_gradient_is_the_slope_of_the_value(direction: str, size: int) -> None:
    z, r = random_row(size, 1), random_row(size, 2)

    def value(logits: list[float]) -> rows.Term:
        return rows.nll(logits, size // 2) if direction == "nll" else rows.alignment(direction, logits, r)

    step = 1e-5
    for i, slope in enumerate(value(z).dlogits):
        up, down = list(z), list(z)
        up[i] += step
        down[i] -= step
        assert slope == pytest.approx((value(up).value - value(down).value) / (2 * step), abs=1e-8)
    assert math.fsum(value(z).dlogits) == pytest.approx(
        0.0, abs=1e-12
    )  # adding a constant to all logits changes nothing
    assert max(abs(slope) for slope in value(z).dlogits) > 1e-3


@pytest.mark.parametrize("direction", rows.DIRECTIONS)
def test_divergences_are_what_their_names_say(direction: str) -> None:
    p, q = [0.5, 0.25, 0.25], [0.1, 0.6, 0.3]
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    by_hand = {
        "base_to_tuned": sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)),
        "tuned_to_base": sum(b * math.log(b / a) for a, b in zip(p, q, strict=True)),
        "jsd": sum(0.5 * a * math.log(a / c) + 0.5 * b * math.log(b / c) for a, b, c in zip(p, q, m, strict=True)),
    }
    tuned, base = [math.log(b) + 7.0 for b in q], [math.log(a) for a in p]
    assert rows.alignment(direction, tuned, base).value == pytest.approx(by_hand[direction], rel=1e-12)
    assert rows.alignment(direction, base, base).value == 0.0
    assert len({round(value, 6) for value in by_hand.values()}) == 3


def test_minus_infinity_has_no_mass() -> None:
    z, r = [0.3, -math.inf, 1.2], [1.0, -math.inf, -0.5]
    for direction in rows.DIRECTIONS:
        with_hole = rows.alignment(direction, z, r)
        without = rows.alignment(direction, [z[0], z[2]], [r[0], r[2]])
        assert with_hole.value == pytest.approx(without.value, rel=1e-14)
        assert with_hole.dlogits == pytest.approx([without.dlogits[0], 0.0, without.dlogits[1]], rel=1e-13)
    assert rows.base_to_tuned([0.0, -math.inf], [0.0, 0.0]).value == math.inf
    assert rows.entropy([5.0, -math.inf]) == 0.0


def test_entropy_and_top1() -> None:
    assert rows.entropy([2.0] * 8) == pytest.approx(math.log(8))
    assert rows.top1([0.0, 4.0, 4.0, 1.0]) == 1


@pytest.mark.parametrize("soft_cap", [None, 2.5])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("direction", [*rows.DIRECTIONS, "nll"])
def test_loops_and_autograd_agree_through_the_head(direction: str, biased: bool, soft_cap: float | None) -> None:
    V, H, scale = 11, 5, 0.7
    generator = torch.Generator().manual_seed(3)
    hidden, weight, bias, reference = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in [(1, H), (V, H), (V,), (1, V)]
    )
    leaves = [hidden.requires_grad_(), weight.requires_grad_()] + ([bias.requires_grad_()] if biased else [])
    z = dense.logits_NV(hidden, weight, bias if biased else None, scale, soft_cap)
    value = dense.nll_N(z, torch.tensor([4])) if direction == "nll" else dense.alignment_N(direction, z, reference)
    expected = torch.autograd.grad(value.sum(), leaves)

    head = (hidden[0].tolist(), weight.tolist(), bias.tolist() if biased else None, scale, soft_cap)
    row = rows.head_logits(*head)
    term = rows.nll(row, 4) if direction == "nll" else rows.alignment(direction, row, reference[0].tolist())
    gradient = rows.head_gradient(term.dlogits, *head)
    assert term.value == pytest.approx(value.item(), rel=1e-12)
    assert gradient.hidden == pytest.approx(expected[0][0].tolist(), rel=1e-10)
    assert torch.allclose(torch.tensor(gradient.weight, dtype=torch.float64), expected[1], rtol=1e-10, atol=1e-14)
    if biased:
        assert gradient.bias == pytest.approx(expected[2].tolist(), rel=1e-10)


def test_positions_of_a_conversation() -> None:
    #         p  p  p  a  a  p  p  a  p      (p prompt, a answer)
    labels = [-100, -100, -100, 4, 5, -100, -100, 8, -100]
    assert positions(labels, align_boundary=False).aligned == [0, 1, 5]
    assert positions(labels, align_boundary=True).aligned == [0, 1, 2, 5, 6]
    assert positions(labels, align_boundary=True).targets == [2, 3, 6]
    assert positions([-100], align_boundary=True).aligned == []


@pytest.mark.parametrize("planted", PLANTED)
@pytest.mark.parametrize("direction", rows.DIRECTIONS)
def test_a_planted_error_moves_the_gradient(planted: str, direction: str) -> None:
    """The precondition of every comparison with the step's oracle: the wrong gradient is far from the right one."""
    step = Step(
        base=lambda: tiny("llama"),
        tuned=with_lora(tiny("llama")),
        sequences=sequences(SINGLE_TURN[:2] + MULTI_TURN[:1] + ODD_SHAPES[:2]),
        direction=direction,
        drawn=(0, 3),
        align_fraction=0.5,
    )
    right = step.gradient()[1]
    assert relative_distance(step.gradient()[1], right) == 0.0
    assert relative_distance(PLANTED[planted](step), right) > 20 * STEP_TOLERANCE
