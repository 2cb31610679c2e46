"""What does the objective do at the edges: no rows, masked logits, equal models, no gradient, tied and shared heads?"""

from __future__ import annotations

import math

import pytest
import torch

from selfaug.objective import ALIGNMENT_TERMS, NLL, LMHead, Rows, WeightedTerm, plain, sweep
from tests.oracles import rows
from tests.unit.objective_cases import DTYPES, HEADS, TOLERANCE, Case, Run, backward, by_loops, case, distance


@pytest.mark.parametrize("run", [sweep, plain], ids=["sweep", "plain"])
@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("empty", ["no groups", "groups without rows"])
def test_an_empty_selection_is_zero_with_a_graph(run: Run, trained: bool, empty: str) -> None:
    c = case("base_to_tuned", head="bias")
    c.nll, c.aligned, c.both = [], [], []
    groups = () if empty == "no groups" else c.groups()
    hidden_TH = c.hidden_TH.clone().requires_grad_()
    weight_VH = c.head.weight_VH.clone().requires_grad_(trained)
    result = run(hidden_TH, LMHead(weight_VH, c.head.bias_V), groups)
    assert result.loss.item() == 0.0
    assert result.loss.requires_grad
    result.loss.backward()
    assert hidden_TH.grad is not None
    assert not hidden_TH.grad.any()
    if trained and run is sweep:
        assert weight_VH.grad is not None  # a rank without rows still takes part in the reduction of the head
        assert not weight_VH.grad.any()


@pytest.mark.parametrize("run", [sweep, plain], ids=["sweep", "plain"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("direction", rows.DIRECTIONS)
def test_minus_infinite_logits_in_both_models(run: Run, direction: str, dtype: torch.dtype) -> None:
    """A vocabulary entry that both models mask: the same as if it were not there."""
    c = case(direction, dtype, "bias", separate=True)
    masked = 5
    for head in (c.head, c.reference_head):
        assert head is not None
        assert head.bias_V is not None
        head.bias_V[masked] = -math.inf
    c.labels_T[c.labels_T == masked] = 6
    expected = by_loops(c)
    assert math.isfinite(expected.loss)
    result, hidden_TH, weight_VH, bias_V = backward(c, run)
    assert distance(result.loss, expected.loss) < TOLERANCE[dtype]
    assert distance(hidden_TH, expected.hidden_TH) < TOLERANCE[dtype]
    for actual, wanted in ((weight_VH, expected.weight_VH), (bias_V, expected.bias_V)):
        assert actual is not None
        assert distance(actual, wanted) < TOLERANCE[dtype]
    assert all(math.isfinite(value.item()) for value in result.sums.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("model", ["tuned", "base"])
@pytest.mark.parametrize("direction", rows.DIRECTIONS)
def test_minus_infinite_logits_in_one_model_stay_finite(direction: str, model: str, dtype: torch.dtype) -> None:
    c = case(direction, dtype, "bias", separate=True)
    head = c.head if model == "tuned" else c.reference_head
    assert head is not None
    assert head.bias_V is not None
    head.bias_V[5] = -math.inf
    c.nll, c.both = [], []
    result, hidden_TH, weight_VH, _ = backward(c, sweep)
    assert weight_VH is not None
    assert math.isfinite(result.loss.item())
    assert torch.isfinite(hidden_TH).all()
    assert torch.isfinite(weight_VH).all()
    expected = by_loops(c)
    if math.isfinite(expected.loss):
        assert distance(result.loss, expected.loss) < TOLERANCE[dtype]
        assert distance(hidden_TH, expected.hidden_TH) < TOLERANCE[dtype]
    else:
        assert result.loss.item() > 1e30


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("direction", rows.DIRECTIONS)
def test_identical_models_give_exactly_zero(direction: str, head: str, dtype: torch.dtype) -> None:
    c = case(direction, dtype, head)
    c.reference_TH = c.hidden_TH.clone()
    c.aligned, c.nll, c.both = range(len(c.hidden_TH)), [], []
    result, hidden_TH, weight_VH, _ = backward(c, sweep)
    assert result.loss.item() == 0.0
    assert not hidden_TH.any()
    assert weight_VH is not None
    assert not weight_VH.any()


@pytest.mark.parametrize("direction", rows.DIRECTIONS)
def test_values_without_a_gradient_are_the_same(direction: str) -> None:
    c = case(direction, torch.float32, "bias, scale and soft cap")
    with_gradient = backward(c, sweep)[0]
    with torch.no_grad():
        without = sweep(c.hidden_TH, c.head, c.groups(), c.reference_head)
    assert not without.loss.requires_grad
    assert torch.equal(without.loss, with_gradient.loss.detach())
    assert without.sums.keys() == with_gradient.sums.keys()
    assert all(torch.equal(without.sums[name], with_gradient.sums[name]) for name in without.sums)


def test_a_loss_that_is_scaled_scales_its_gradient() -> None:
    c = case("jsd")
    once = backward(c, sweep)[1]
    hidden_TH = c.hidden_TH.clone().requires_grad_()
    (3.0 * sweep(hidden_TH, c.head, c.groups()).loss).backward()
    assert hidden_TH.grad is not None
    assert distance(hidden_TH.grad, 3.0 * once) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("differs", ["bias", "scale", "soft cap"])
def test_a_reference_head_that_shares_only_its_weight(differs: str) -> None:
    """Only the bias is trained, or only the shape differs: the base's own bias, scale and cap are used."""
    c = case("base_to_tuned", head="bias, scale and soft cap")
    assert c.head.bias_V is not None
    c.reference_head = LMHead(
        c.head.weight_VH,
        c.head.bias_V + 1.5 * torch.linspace(-1, 1, len(c.head.bias_V)) if differs == "bias" else c.head.bias_V,
        2.0 if differs == "scale" else c.head.scale,
        5.0 if differs == "soft cap" else c.head.soft_cap,
    )
    expected = by_loops(c)
    same = by_loops(Case(**{**vars(c), "reference_head": None}))
    assert abs(expected.loss - same.loss) > 1e-3 * expected.loss
    hidden_TH = c.hidden_TH.clone().requires_grad_()
    result = sweep(hidden_TH, c.head, c.groups(), c.reference_head)
    assert distance(result.loss.detach(), expected.loss) < TOLERANCE[torch.float64]


def test_only_the_bias_is_trained() -> None:
    c = case("base_to_tuned", head="bias")
    assert c.head.bias_V is not None
    bias_V = c.head.bias_V.clone().requires_grad_()
    sweep(c.hidden_TH, LMHead(c.head.weight_VH, bias_V), c.groups(), c.head).loss.backward()
    assert bias_V.grad is not None
    assert distance(bias_V.grad, by_loops(c).bias_V) < TOLERANCE[torch.float64]


def test_a_tied_head_gets_both_of_its_gradients() -> None:
    """The embedding is the head: its gradient is that of the rows plus that of the hidden states made from it."""
    c = case("tuned_to_base", head="scale")
    ids_T = torch.arange(len(c.hidden_TH)) % len(c.head.weight_VH)
    weight_VH = c.head.weight_VH.clone().requires_grad_()
    head = LMHead(weight_VH, None, c.head.scale)
    sweep(weight_VH[ids_T] + c.hidden_TH, head, c.groups(), c.head).loss.backward()

    c.hidden_TH = c.head.weight_VH[ids_T] + c.hidden_TH
    expected = by_loops(c)
    through_embedding = torch.zeros_like(expected.weight_VH).index_add(0, ids_T, expected.hidden_TH)
    assert through_embedding.norm() > 0.1 * expected.weight_VH.norm()
    assert weight_VH.grad is not None
    assert distance(weight_VH.grad, expected.weight_VH + through_embedding) < TOLERANCE[torch.float64]


def test_autocast_runs_the_products_in_its_dtype() -> None:
    c = case("base_to_tuned", torch.float32, "bias", V=97, H=33)
    expected = by_loops(c)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result, hidden_TH, weight_VH, _ = backward(c, sweep)
    assert hidden_TH.dtype == torch.float32
    assert weight_VH is not None
    assert weight_VH.dtype == torch.float32
    assert 1e-5 < distance(hidden_TH, expected.hidden_TH) < TOLERANCE[torch.bfloat16]
    assert distance(weight_VH, expected.weight_VH) < TOLERANCE[torch.bfloat16]
    assert distance(result.loss.detach(), expected.loss) < TOLERANCE[torch.bfloat16]


def test_the_reference_is_constant() -> None:
    c = case("jsd", separate=True)
    c.reference_TH = c.reference_TH.clone().requires_grad_()
    hidden_TH = c.hidden_TH.clone().requires_grad_()
    assert c.reference_head is not None
    c.reference_head.weight_VH.requires_grad_()
    sweep(hidden_TH, c.head, c.groups(), c.reference_head).loss.backward()
    assert c.reference_TH.grad is None
    assert c.reference_head.weight_VH.grad is None


def test_what_does_not_fit_is_an_error() -> None:
    c = case("base_to_tuned")
    index_N = torch.arange(3)
    with pytest.raises(ValueError, match="do not fit"):
        sweep(c.hidden_TH[:, 1:], c.head, c.groups())
    with pytest.raises(ValueError, match="needs 3 labels"):
        sweep(c.hidden_TH, c.head, [Rows(index_N, (WeightedTerm(NLL(), 1.0),), label_N=index_N[:2])])
    with pytest.raises(ValueError, match="needs 3 reference"):
        sweep(c.hidden_TH, c.head, [Rows(index_N, (WeightedTerm(ALIGNMENT_TERMS["jsd"], 1.0),))])
