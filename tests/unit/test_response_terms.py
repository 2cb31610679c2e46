"""Do the rivals' row terms have the values and slopes of loops over floats, and their definitions too?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selfaug.objective import NLL, LMHead, Rows, WeightedTerm, plain, sweep
from selfaug.objective.response_terms import DFT, EAFT, KL_RESPONSE, TALR, Anchored, PartNLL, WithoutGold
from tests.oracles import response_rows as oracle
from tests.oracles import rows
from tests.oracles.rows import Term

Oracle = Callable[[list[float], list[float], int], Term]
CASES: dict[str, tuple[Any, Oracle]] = {
    "dft": (DFT(), lambda z, r, y: oracle.dft(z, y)),
    "dft, power 0.5": (DFT(0.5), lambda z, r, y: oracle.dft(z, y, 0.5)),
    "eaft": (EAFT(), lambda z, r, y: oracle.eaft(z, y)),
    "eaft, top 3, power 2": (EAFT(3, 2.0), lambda z, r, y: oracle.eaft(z, y, 3, 2.0)),
    "talr": (TALR(), lambda z, r, y: oracle.talr(z, y)),
    "talr, tau 3, floor 0.2": (TALR(3.0, 0.2), lambda z, r, y: oracle.talr(z, y, 3.0, 0.2)),
    "tmkl": (WithoutGold(), lambda z, r, y: oracle.tmkl(z, r, y)),
    "anchored": (Anchored(), lambda z, r, y: oracle.anchored(z, r)),
    "anchored, pull 1": (Anchored(1.0), lambda z, r, y: rows.base_to_tuned(z, r)),
    "anchored, pull 0.2": (Anchored(0.2), lambda z, r, y: oracle.anchored(z, r, 0.2)),
    "part_nll": (PartNLL(0.3), lambda z, r, y: oracle.part_nll(z, y, 0.3)),
    "kl_response": (KL_RESPONSE, lambda z, r, y: rows.base_to_tuned(z, r)),
}
# float64: a few hundred roundings of 1e-16, in exponents of up to 60.
TIGHT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}


def random_rows(
    count: int = 5, vocabulary: int = 31, spread: float = 2.0, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z, r = (spread * torch.randn(count, vocabulary, generator=generator, dtype=torch.float64) for _ in range(2))
    return z, r, torch.randint(0, vocabulary, (count,), generator=generator)


def expected(case: str, z: Tensor, r: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    found = [CASES[case][1](a.tolist(), b.tolist(), int(c)) for a, b, c in zip(z, r, y, strict=True)]
    value = torch.tensor([f.value for f in found], dtype=torch.float64)
    return value, torch.tensor([f.dlogits for f in found], dtype=torch.float64)


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=12, deadline=None)
@given(vocabulary=st.integers(2, 40), spread=st.sampled_from([0.0, 0.3, 3.0, 15.0]), seed=st.integers(0, 10_000))
def test_value_and_slope_are_those_of_loops(case: str, vocabulary: int, spread: float, seed: int) -> None:
    z, r, y = random_rows(3, vocabulary, spread, seed)
    kept = z.clone(), r.clone()
    term = CASES[case][0]
    result = term(z, r, y, gradient=True)
    value, slope = expected(case, z, r, y)
    torch.testing.assert_close(result.value_N, value, **TIGHT)
    torch.testing.assert_close(result.gradient_NV, slope, **TIGHT)
    assert torch.equal(z, kept[0])
    assert torch.equal(r, kept[1])
    leaf = z.clone().requires_grad_()
    defined = term.definition(leaf, r, y)
    torch.testing.assert_close(defined, value, **TIGHT)
    torch.testing.assert_close(torch.autograd.grad(defined.sum(), leaf)[0], slope, **TIGHT)
    assert term(z, r, y, gradient=False).gradient_NV is None


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("run", [sweep, plain], ids=["sweep", "plain"])
def test_hidden_states_get_the_slope_through_the_head(case: str, run: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden, reference, weight = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (7, 7, 29))
    y = torch.randint(0, 29, (7,), generator=generator)
    leaf = hidden.clone().requires_grad_()
    term = CASES[case][0]
    group = Rows(torch.arange(7), (WeightedTerm(term, 0.5),), y, reference)
    result = run(leaf, LMHead(weight), [group])
    result.loss.backward()
    value, slope = expected(case, hidden @ weight.T, reference @ weight.T, y)
    torch.testing.assert_close(result.loss, 0.5 * value.sum(), **TIGHT)
    torch.testing.assert_close(result.sums[term.name], value.sum(), **TIGHT)
    torch.testing.assert_close(leaf.grad, 0.5 * slope @ weight, **TIGHT)


@pytest.mark.parametrize("term", [DFT(), EAFT(), TALR()], ids=lambda term: term.name)
def test_what_takes_the_place_of_the_nll_still_reports_it(term: Any) -> None:
    z, _, y = random_rows()
    result, nll = term(z, None, y, gradient=True), NLL()(z, None, y, gradient=True)
    assert torch.equal(result.statistics["nll"], nll.value_N)
    assert result.statistics.keys() == {"nll", "entropy", "correct"}
    assert not torch.allclose(result.value_N, nll.value_N)


@pytest.mark.parametrize("term", [DFT(0.0), EAFT(power=0.0), TALR(floor=1.0)], ids=lambda term: term.name)
def test_without_strength_it_is_the_nll_to_the_bit(term: Any) -> None:
    z, _, y = random_rows()
    result, nll = term(z, None, y, gradient=True), NLL()(z, None, y, gradient=True)
    assert torch.equal(result.value_N, nll.value_N)
    assert torch.equal(result.gradient_NV, nll.gradient_NV)


# ---- what distinguishes each ----------------------------------------------------------------------------------------


def row(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def test_eafts_gate_is_one_on_a_uniform_top_20_and_zero_on_certainty() -> None:
    # Twenty tokens share 0.9; ten others have less each, and the gate does not see them.
    uniform = row(*[0.045] * 20, *[0.01] * 10)
    assert EAFT().weights(uniform, torch.zeros(1)).item() == pytest.approx(1.0, abs=1e-12)
    certain = torch.zeros(1, 30, dtype=torch.float64)
    certain[0, 4] = 800.0
    assert EAFT().weights(certain, torch.zeros(1)).item() == 0.0
    # Half and half: one bit of log2(20).
    assert EAFT().weights(row(0.5, 0.5, *[0.0] * 28), torch.zeros(1)).item() == pytest.approx(1 / math.log2(20))


def test_dft_halves_what_has_half_a_chance() -> None:
    z, y = row(0.5, 0.25, 0.25), torch.tensor([0])
    assert DFT()(z, None, y, gradient=False).value_N.item() == pytest.approx(0.5 * math.log(2))


def test_talr_weights_an_unlikely_token_less_and_never_below_the_floor() -> None:
    z = row(0.9, 0.09, 0.00999, 1e-5)
    nll = NLL()
    weights = [TALR().weights(z, nll(z, None, torch.tensor([i]), gradient=False).value_N).item() for i in range(4)]
    assert weights == pytest.approx([0.9, 0.09, 0.01, 0.01])


def test_tmkl_costs_nothing_where_only_the_label_moved() -> None:
    base, tuned, y = row(0.1, 0.3, 0.6), row(0.7, 0.1, 0.2), torch.tensor([0])
    assert WithoutGold()(tuned, base, y, gradient=False).value_N.item() == pytest.approx(0.0, abs=1e-15)
    assert KL_RESPONSE(tuned, base, None, gradient=False).value_N.item() > 0.5
    moved = row(0.7, 0.2, 0.1)
    value = 1 / 3 * math.log((1 / 3) / (2 / 3)) + 2 / 3 * math.log((2 / 3) / (1 / 3))
    assert WithoutGold()(moved, base, y, gradient=False).value_N.item() == pytest.approx(value)


@pytest.mark.parametrize("case", CASES)
def test_a_token_without_chance_breaks_nothing(case: str) -> None:
    z, r, y = random_rows()
    others = torch.arange(z.shape[1]) != y[:, None]
    z[:, 3] = torch.where(others[:, 3], -math.inf, z[:, 3])
    r[:, 3] = torch.where(others[:, 3], -math.inf, r[:, 3])
    result = CASES[case][0](z, r, y, gradient=True)
    value, slope = expected(case, z, r, y)
    torch.testing.assert_close(result.value_N, value, **TIGHT)
    torch.testing.assert_close(result.gradient_NV, slope, **TIGHT)
