"""Do the row terms, the plain definition and the sweep equal loops, floats and calculus?"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfaug.objective import ALIGNMENT_TERMS, NLL, RowTerm, plain, sweep
from tests.oracles import rows
from tests.unit.objective_cases import (
    BLOCKS_MODULE,
    DTYPES,
    HEADS,
    TERMS,
    TOLERANCE,
    Run,
    backward,
    by_autograd,
    by_loops,
    case,
    distance,
)


@pytest.mark.parametrize("size", [2, 3, 97])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", TERMS)
def test_term_equals_calculus(name: str, dtype: torch.dtype, size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    N = 5
    logits, reference = (3 * torch.randn(N, size, generator=generator, dtype=dtype) for _ in range(2))
    labels = torch.randint(0, size, (N,), generator=generator)
    term: RowTerm = NLL() if name == "nll" else ALIGNMENT_TERMS[name]
    untouched = logits.clone(), reference.clone()

    result = term(logits, reference, labels, gradient=True)
    z, r, y = logits.tolist(), reference.tolist(), labels.tolist()
    expected = [rows.nll(z[n], y[n]) if name == "nll" else rows.alignment(name, z[n], r[n]) for n in range(N)]

    values = torch.tensor([e.value for e in expected], dtype=torch.float64)
    gradients = torch.tensor([e.dlogits for e in expected], dtype=torch.float64)
    assert gradients.norm() > 0.01
    assert result.gradient_NV is not None
    assert distance(result.value_N, values) < TOLERANCE[dtype]
    assert distance(result.gradient_NV, gradients) < TOLERANCE[dtype]
    assert distance(term.definition(logits, reference, labels), values) < TOLERANCE[dtype]
    assert term(logits, reference, labels, gradient=False).gradient_NV is None
    assert torch.equal(logits, untouched[0])
    assert torch.equal(reference, untouched[1])


def test_directions_differ() -> None:
    """The precondition of every comparison by direction: no two of them could be confused within a tolerance."""
    values = [by_loops(case(direction)).loss for direction in rows.DIRECTIONS]
    assert min(abs(a - b) / a for a in values for b in values if a is not b) > 3 * TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("separate", [False, True], ids=["shared head", "separate reference head"])
@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("direction", rows.DIRECTIONS)
@pytest.mark.parametrize("run", [sweep, plain], ids=["sweep", "plain"])
def test_objective_equals_loops(
    run: Run, direction: str, head: str, dtype: torch.dtype, trained: bool, separate: bool
) -> None:
    c = case(direction, dtype, head, separate=separate)
    expected = by_loops(c)
    result, hidden_TH, weight_VH, bias_V = backward(c, run, trained)
    tolerance = TOLERANCE[dtype]
    assert distance(result.loss, expected.loss) < tolerance
    assert result.sums.keys() == expected.sums.keys()
    for name, value in expected.sums.items():
        # One more or one fewer hit of the most likely token is a step, not a rounding.
        slack = 1 if name == "correct" and dtype.itemsize == 2 else tolerance * abs(value)
        assert abs(result.sums[name].item() - value) <= slack, name
        assert not result.sums[name].requires_grad
    assert distance(hidden_TH, expected.hidden_TH) < tolerance
    untouched = sorted(set(range(len(c.hidden_TH))) - {*c.nll, *c.aligned, *c.both})
    assert len(untouched) == 2
    assert not hidden_TH[untouched].any()
    if not trained:
        assert weight_VH is None
        assert bias_V is None
        return
    assert weight_VH is not None
    assert distance(weight_VH, expected.weight_VH) < tolerance
    if c.head.bias_V is not None:
        assert bias_V is not None
        assert distance(bias_V, expected.bias_V) < tolerance


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("direction", rows.DIRECTIONS)
def test_sweep_equals_plain_in_the_same_dtype(direction: str, dtype: torch.dtype) -> None:
    c = case(direction, dtype, "bias, scale and soft cap", T=61, V=301, H=33, separate=True)
    fast, exact = backward(c, sweep), backward(c, plain)
    assert distance(fast[0].loss.detach(), exact[0].loss.detach()) < TOLERANCE[dtype] / 5
    for ours, theirs in zip(fast[1:], exact[1:], strict=True):
        assert ours is not None
        assert theirs is not None
        assert ours.dtype == theirs.dtype == dtype
        assert distance(ours, theirs) < TOLERANCE[dtype]


@settings(max_examples=60, deadline=None)
@given(
    T=st.integers(3, 40),
    V=st.sampled_from([2, 3, 31, 64, 65]),
    H=st.sampled_from([1, 2, 16, 17]),
    direction=st.sampled_from(rows.DIRECTIONS),
    head=st.sampled_from(sorted(HEADS)),
    rows_per_block=st.sampled_from([1, 2, 3, 4, 7, 1000]),
    rows_per_slice=st.sampled_from([1, 3, 1000]),
    seed=st.integers(0, 10_000),
)
def test_no_block_size_changes_the_result(
    T: int, V: int, H: int, direction: str, head: str, rows_per_block: int, rows_per_slice: int, seed: int
) -> None:
    """Sizes on and off block and slice boundaries, against dense logits and autograd."""
    c = case(direction, torch.float64, head, T, V, H, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BLOCKS_MODULE, "_CPU_SLICE_ELEMENTS", rows_per_slice * V)
        result, hidden_TH, weight_VH, bias_V = backward(c, sweep, block_bytes=rows_per_block * V * 8 * 2)
    expected = by_autograd(c)
    assert abs(result.loss.item() - expected.loss) < 1e-11 * max(1.0, abs(expected.loss))
    for actual, wanted in ((hidden_TH, expected.hidden_TH), (weight_VH, expected.weight_VH), (bias_V, expected.bias_V)):
        if actual is not None:
            assert (actual - wanted).abs().max() < 1e-11
