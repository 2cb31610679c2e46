"""Do the kernels equal PyTorch's operations in the same dtype, and loops and floats?

The same checks run in Triton's interpreter (`test_kernels.py`, which starts them in a process of their own, for the
interpreter must be asked for before Triton is imported) and on a GPU (`test_kernels_gpu.py`, which says which device).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from selfaug.objective import ALIGNMENT_TERMS, NLL, LMHead, Objective, Rows, WeightedTerm, kernels, sweep
from tests.oracles import rows
from tests.unit.objective_cases import HEADS, TOLERANCE, Case, Expected, by_loops, case, distance

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TILE = 128
Ran = tuple[Objective, Tensor, Tensor | None, Tensor | None]


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(kernels, "TILE", TILE)
    return iter(())


def run(c: Case, device: torch.device, elementwise: str, trained: bool = True, **options: Any) -> Ran:
    """The sweep and its backward pass: the result and the gradients of hidden states, weight and bias, on the CPU."""

    def there(x: Any) -> Any:
        return x.to(device) if isinstance(x, Tensor) else x

    def head_there(head: LMHead, trained: bool) -> LMHead:
        weight_VH = there(head.weight_VH).clone().requires_grad_(trained)
        bias_V = None if head.bias_V is None else there(head.bias_V).clone().requires_grad_(trained)
        return replace(head, weight_VH=weight_VH, bias_V=bias_V)

    hidden_TH = there(c.hidden_TH).clone().requires_grad_()
    head = head_there(c.head, trained)
    groups = [
        Rows(
            there(g.index_N),
            tuple(WeightedTerm(w.term, there(w.weight)) for w in g.terms),
            there(g.label_N),
            there(g.reference_NH),
        )
        for g in c.groups()
    ]
    base = head_there(c.reference_head or c.head, False)
    result = sweep(hidden_TH, head, groups, base, elementwise=elementwise, **options)
    result.loss.backward()
    assert hidden_TH.grad is not None
    found = Objective(result.loss.detach().cpu(), {k: v.cpu() for k, v in result.sums.items()})
    leaves = (head.weight_VH, head.bias_V)
    weight_VH, bias_V = (None if x is None or x.grad is None else x.grad.cpu() for x in leaves)
    return found, hidden_TH.grad.cpu(), weight_VH, bias_V


def agree(found: Ran, wanted: Ran | Expected, dtype: torch.dtype) -> None:
    tolerance = TOLERANCE[dtype]
    if isinstance(wanted, Expected):
        loss, sums = wanted.loss, wanted.sums
        gradients = (wanted.hidden_TH, wanted.weight_VH, wanted.bias_V)
    else:
        loss, sums, gradients = wanted[0].loss, dict(wanted[0].sums), wanted[1:]
    assert distance(found[0].loss, loss) < tolerance
    for name, value in found[0].sums.items():
        slack = 1 if name == "correct" and dtype.itemsize == 2 else tolerance
        assert abs(value.item() - float(sums[name])) <= slack * max(1.0, abs(float(sums[name]))), name
    for ours, theirs in zip(found[1:], gradients, strict=True):
        if ours is not None:
            assert theirs is not None
            assert distance(ours, theirs) < tolerance


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("direction", rows.DIRECTIONS)
def test_kernels_equal_torch_and_loops(direction: str, head: str, dtype: torch.dtype, device: torch.device) -> None:
    c = case(direction, dtype, head, T=10, separate=True)
    found = run(c, device, "kernels")
    assert found[1].norm() > 0.01
    agree(found, run(c, device, "torch"), dtype)
    agree(found, by_loops(c), dtype)
    assert not found[1][[n for n in range(len(c.hidden_TH)) if n not in {*c.nll, *c.aligned, *c.both}]].any()


@pytest.mark.parametrize("scale_and_cap", [(2.0, None), (1.0, 5.0)])
@pytest.mark.parametrize("direction", rows.DIRECTIONS)
def test_a_reference_head_of_another_shape(
    direction: str, scale_and_cap: tuple[float, float | None], device: torch.device
) -> None:
    c = case(direction, torch.float32, "bias, scale and soft cap", T=10, separate=True)
    assert c.reference_head is not None
    same = by_loops(c).loss
    scale, soft_cap = scale_and_cap
    c.reference_head = replace(c.reference_head, scale=scale, soft_cap=soft_cap)
    expected = by_loops(c)
    assert abs(expected.loss - same) > 1e-2 * same
    agree(run(c, device, "kernels"), expected, torch.float32)


@pytest.mark.parametrize("V", [1, 5, TILE - 1, TILE, TILE + 1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("direction", rows.DIRECTIONS)
def test_sizes_on_and_off_a_tile(direction: str, dtype: torch.dtype, V: int, device: torch.device) -> None:
    c = case(direction, dtype, "bias", T=7, V=V, H=3, separate=True, seed=V)
    assert [len(c.nll), len(c.aligned), len(c.both)] == [2, 2, 1]
    found = run(c, device, "kernels", block_bytes=1)  # a row a block
    agree(found, run(c, device, "torch"), dtype)
    agree(found, by_loops(c), dtype)


@pytest.mark.parametrize("direction", rows.DIRECTIONS)
def test_a_single_row_and_no_row(direction: str, device: torch.device) -> None:
    c = case(direction, torch.float32, "bias, scale and soft cap", separate=True)
    c.nll, c.aligned, c.both = [], [], [3]
    agree(run(c, device, "kernels"), by_loops(c), torch.float32)
    c.both = []
    result, hidden_TH, weight_VH, _ = run(c, device, "kernels")
    assert result.loss.item() == 0.0
    assert weight_VH is not None
    assert not hidden_TH.any()
    assert not weight_VH.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head", ["bare", "bias, scale and soft cap"])
@pytest.mark.parametrize("direction", rows.DIRECTIONS)
def test_equal_models_give_exactly_zero(direction: str, head: str, dtype: torch.dtype, device: torch.device) -> None:
    c = case(direction, dtype, head, T=5, V=2 * TILE + 7)
    c.reference_TH = c.hidden_TH.clone()
    c.aligned, c.nll, c.both = range(len(c.hidden_TH)), [], []
    result, hidden_TH, weight_VH, _ = run(c, device, "kernels")
    assert result.loss.item() == 0.0
    assert not hidden_TH.any()
    assert weight_VH is not None
    assert not weight_VH.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", ["both", "tuned", "base"])
@pytest.mark.parametrize("direction", rows.DIRECTIONS)
def test_minus_infinite_logits_stay_finite(
    direction: str, masked: str, dtype: torch.dtype, device: torch.device
) -> None:
    c = case(direction, dtype, "bias", T=10, separate=True)
    assert c.reference_head is not None
    for name, head in (("tuned", c.head), ("base", c.reference_head)):
        assert head.bias_V is not None
        if masked in ("both", name):
            head.bias_V[5] = -math.inf
    c.labels_T[c.labels_T == 5] = 6
    expected = by_loops(c)
    found, torch_path = run(c, device, "kernels", trained=False), run(c, device, "torch", trained=False)
    assert math.isfinite(found[0].loss.item())
    if math.isfinite(expected.loss):
        agree(found, torch_path, dtype)
        agree(found, expected, dtype)
    else:
        assert found[0].loss.item() > 1e30
        assert distance(found[0].loss / 1e30, torch_path[0].loss / 1e30) < TOLERANCE[dtype]
        # Where the value is out of every range, so may the 16-bit gradient be, on both paths alike.
        assert torch.equal(torch.isfinite(found[1]), torch.isfinite(torch_path[1]))


def test_values_without_a_gradient_are_the_same(device: torch.device) -> None:
    c = case("jsd", torch.float32, "bias, scale and soft cap")
    index_N = torch.tensor(c.both, device=device)
    hidden_TH, weight_VH = c.hidden_TH.to(device), c.head.weight_VH.to(device)
    assert c.head.bias_V is not None
    head = replace(c.head, weight_VH=weight_VH, bias_V=c.head.bias_V.to(device))
    c.nll, c.aligned = [], []
    expected = run(c, device, "kernels")[0]
    terms = (WeightedTerm(NLL(), 0.125), WeightedTerm(ALIGNMENT_TERMS["jsd"], 2.0))
    group = Rows(index_N, terms, c.labels_T.to(device)[index_N], c.reference_TH.to(device)[index_N])
    with torch.no_grad():
        found = sweep(hidden_TH, head, [group], elementwise="kernels")
    assert not found.loss.requires_grad
    assert torch.equal(found.loss.cpu(), expected.loss)
    assert all(torch.equal(found.sums[name].cpu(), expected.sums[name]) for name in found.sums)


@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_the_first_of_equal_logits_is_the_most_likely(soft_cap: float | None, device: torch.device) -> None:
    weight_VH = torch.tensor([[1.0], [3.0], [3.0], [2.0]], device=device)
    hidden_TH = torch.ones(4, 1, device=device)
    group = Rows(torch.arange(4, device=device), (WeightedTerm(NLL(), 1.0),), torch.arange(4, device=device))
    for n, correct in enumerate([0, 1, 0, 0]):
        one = Rows(group.index_N[n : n + 1], group.terms, torch.tensor([n], device=device))
        found = sweep(hidden_TH, LMHead(weight_VH, soft_cap=soft_cap), [one], elementwise="kernels")
        assert found.sums["correct"].item() == correct


@pytest.mark.parametrize("where", ["hidden", "label"])
def test_what_is_no_number_or_no_token_gives_nan(where: str, device: torch.device) -> None:
    """The trainer stops on it; a clamp that lost it would train on nonsense."""
    c = case("base_to_tuned", torch.float32)
    c.aligned, c.both = [], []
    if where == "hidden":
        c.hidden_TH[c.nll[0], 0] = math.nan
    else:
        c.labels_T[c.nll[0]] = -100
    assert math.isnan(run(c, device, "kernels")[0].loss.item())
