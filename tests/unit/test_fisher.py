"""Is the Fisher information that of the base's own distribution, and is the penalty made of it as loops say?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfaug.before.fisher import fisher_diagonal
from selfaug.before.texts import text_of
from selfaug.common.errors import ConfigError
from selfaug.model.libraries import lora_pairs
from selfaug.step.parameter_terms import ewc_penalty, weighted_squared_norm
from tests.models import VOCAB, tiny, with_lora
from tests.oracles import parameters as oracle

TIGHT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
sizes = st.integers(1, 6)
TEXTS = [[5, 9, 33, 70], [12, 3, 8, 41, 6, 90, 17]]


def normal(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64).requires_grad_()


@settings(max_examples=30, deadline=None)
@given(sizes, sizes, sizes, st.floats(0.1, 4.0), st.integers(0, 10_000))
def test_the_weighted_size_of_the_update(R: int, I: int, O: int, scale: float, seed: int) -> None:  # noqa: E741
    A, B, F = normal(R, I, seed), normal(O, R, seed + 1), normal(O, I, seed + 2).detach().square()
    value = weighted_squared_norm(A, B, F, scale)
    expected, *slopes = oracle.weighted_update(A.tolist(), B.tolist(), F.tolist(), scale)
    assert value.item() == pytest.approx(expected, rel=1e-10)
    # A factor behind the term must reach the slopes.
    for got, slope in zip(torch.autograd.grad(3 * value, [A, B]), slopes, strict=True):
        torch.testing.assert_close(got, 3 * torch.tensor(slope, dtype=torch.float64), **TIGHT)


def slowly(arch: str, texts: list[list[int]], labels: list[list[int]]) -> dict[str, torch.Tensor]:
    """Dense logits of the base without any adapter, one backward pass a row, by the names of its weights."""
    model = tiny(arch)
    total: dict[str, torch.Tensor] = {}
    for ids, wanted in zip(texts, labels, strict=True):
        model.zero_grad()
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        score = sum(logits[t].log_softmax(-1)[y] for t, y in enumerate(wanted))
        assert isinstance(score, torch.Tensor)
        score.backward()
        for name, p in model.named_parameters():
            assert p.grad is not None
            total[name] = total.get(name, torch.zeros_like(p)) + p.grad**2
    return total


@pytest.mark.parametrize("arch", ["llama", "gemma2", "cohere"])
def test_with_given_labels_it_is_the_square_of_each_rows_slope(arch: str) -> None:
    """Also through a soft cap and a scaled, tied head; the perturbed adapter must be off."""
    labels = [[4, 60, 2, 11], [90, 8, 8, 31, 5, 77, 1]]
    served = iter(labels)
    model = with_lora(tiny(arch)).get_base_model()
    sums, tokens = fisher_diagonal(model, TEXTS, draw=lambda logits: torch.tensor(next(served)))
    assert tokens == 11
    expected = slowly(arch, TEXTS, labels)
    names = {id(p): name.replace(".base_layer", "") for name, p in model.named_parameters()}
    pairs = lora_pairs(model)
    assert len(sums) == len(pairs) == 14
    for pair, got in zip(pairs, sums, strict=True):
        # The float32 norms and rotary tables of transformers round both sides alike, up to single flips.
        torch.testing.assert_close(got, expected[names[id(pair.layer.get_base_layer().weight)]], rtol=1e-4, atol=1e-9)
    assert not any(pair.layer.get_base_layer().weight.requires_grad for pair in pairs)


def test_labels_are_drawn_from_the_base_so_that_the_mean_is_the_fisher_information() -> None:
    """One token of context: the expectation over its next token can be written out."""
    model = tiny("llama")
    weight = model.model.layers[1].mlp.down_proj.weight
    logp = model(input_ids=torch.tensor([[7]])).logits[0, 0].log_softmax(-1)
    squares = torch.stack([torch.autograd.grad(logp[y], weight, retain_graph=True)[0] ** 2 for y in range(VOCAB)])
    p = logp.exp().detach()
    exact = torch.einsum("v,voi->oi", p, squares)
    draws = 400
    tuned = with_lora(tiny("llama")).get_base_model()
    index = [pair.layer.get_base_layer() for pair in lora_pairs(tuned)].index(
        tuned.model.layers[1].mlp.down_proj.base_layer
    )
    got = fisher_diagonal(tuned, [[7]] * draws, seed=5)[0][index] / draws
    trace, error = exact.sum(), (torch.einsum("v,v->", p, squares.sum((1, 2)) ** 2) - exact.sum() ** 2).sqrt()
    assert abs(got.sum() - trace) < 4 * error / draws**0.5
    for other in (squares.mean(0), squares[p.argmax()]):  # labels drawn evenly, and the likeliest one
        assert (got - exact).norm() < 0.5 * (got - other).norm()
    assert torch.equal(fisher_diagonal(tuned, [[7]] * 3, seed=5)[0][0], fisher_diagonal(tuned, [[7]] * 3, seed=5)[0][0])


def test_over_a_models_layers_each_has_its_own_weights() -> None:
    model = with_lora(tiny("llama"))
    pairs = lora_pairs(model)
    expected = 0.0
    for number, pair in enumerate(pairs):
        assert pair.W is not None
        pair.layer.selfaug_fisher = torch.rand(pair.W.shape, generator=torch.Generator().manual_seed(number))
        expected += (pair.layer.selfaug_fisher.double() * (pair.scale * pair.B @ pair.A) ** 2).sum().item()
    assert ewc_penalty(model).item() == pytest.approx(expected, rel=1e-10)
    assert not [name for name in model.state_dict() if "fisher" in name]


def test_a_prompt_ends_before_the_first_response_token() -> None:
    row = {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]}
    assert text_of(row, prompt=True) == [1, 2]
    assert text_of(row, prompt=False) == [1, 2, 3, 4]
    assert text_of({"input_ids": [1, 2], "labels": [1, 2]}, prompt=True) == [1, 2]


def test_a_quantised_weight_is_refused() -> None:
    model = with_lora(tiny("llama")).get_base_model()
    layer = model.model.layers[0].mlp.up_proj.base_layer
    layer.weight = torch.nn.Parameter(torch.zeros_like(layer.weight, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ConfigError, match="quantised"):
        fisher_diagonal(model, TEXTS)
