"""Do the terms on the weights themselves have the values and slopes of loops over floats?"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig

from selfaug.common.errors import ConfigError
from selfaug.methods import get_method
from selfaug.methods.adapters import check_adapter
from selfaug.model.libraries import lora_pairs
from selfaug.step.parameter_terms import (
    absolute_overlap_of_layers,
    l2_penalty,
    overlap,
    overlap_of_layers,
    squared_norm,
)
from tests.models import tiny, with_lora
from tests.oracles import parameters as oracle

TIGHT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}
sizes = st.integers(1, 6)


def normal(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64).requires_grad_()


@settings(max_examples=30, deadline=None)
@given(sizes, sizes, sizes, st.floats(0.1, 4.0), st.integers(0, 10_000))
def test_the_size_of_the_update(R: int, I: int, O: int, scale: float, seed: int) -> None:  # noqa: E741
    A, B = normal(R, I, seed), normal(O, R, seed + 1)
    value = squared_norm(A, B, scale)
    expected, *slopes = oracle.squared_update(A.tolist(), B.tolist(), scale)
    assert value.item() == pytest.approx(expected, rel=1e-10)
    for got, slope in zip(torch.autograd.grad(value, [A, B]), slopes, strict=True):
        torch.testing.assert_close(got, torch.tensor(slope, dtype=torch.float64), **TIGHT)


@settings(max_examples=30, deadline=None)
@given(sizes, sizes, sizes, st.integers(0, 10_000))
def test_the_overlap_with_the_pretrained_weight(R: int, I: int, O: int, seed: int) -> None:  # noqa: E741
    A, W = normal(R, I, seed), normal(O, I, seed + 1).detach()
    value = overlap(W, A)
    expected, slope = oracle.overlap(W.tolist(), A.tolist())
    assert value.item() == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(torch.autograd.grad(value, A)[0], torch.tensor(slope, dtype=torch.float64), **TIGHT)
    assert overlap(3 * W, 0.1 * A).item() == pytest.approx(expected, rel=1e-10)


def test_the_overlap_is_none_in_the_null_space_and_one_for_all_directions() -> None:
    W = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    assert overlap(W, torch.tensor([[0.0, 0.0, 5.0]])).item() == 0.0
    assert overlap(W, torch.eye(3)).item() == pytest.approx(1.0)
    assert overlap(W, torch.tensor([[0.0, 1.0, 0.0]])).item() == pytest.approx(3 * 9 / 13)
    nothing = torch.zeros(1, 3, requires_grad=True)
    overlap(W, nothing).backward()
    assert nothing.grad is not None
    assert torch.isfinite(nothing.grad).all()


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_over_a_models_layers(arch: str) -> None:
    model = with_lora(tiny(arch))
    pairs = lora_pairs(model)
    assert len(pairs) == 14
    assert {pair.scale for pair in pairs} == {2.0}
    expected = sum(((pair.scale * pair.B @ pair.A) ** 2).sum().item() for pair in pairs)
    assert l2_penalty(model).item() == pytest.approx(expected, rel=1e-10)
    mean = sum(oracle.overlap(p.W.tolist(), p.A.tolist())[0] for p in pairs if p.W is not None) / 14
    assert overlap_of_layers(model).item() == pytest.approx(mean, rel=1e-10)
    total = sum(
        abs(math.fsum(w * a for w, a in zip(row, column, strict=True)))
        for p in pairs
        if p.W is not None
        for row in p.W.tolist()
        for column in p.A.tolist()
    )
    assert absolute_overlap_of_layers(model).item() == pytest.approx(total, rel=1e-10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert l2_penalty(model).item() == pytest.approx(expected, rel=1e-10)


def test_a_quantised_weight_is_refused() -> None:
    model = with_lora(tiny("llama"))
    layer = model.get_base_model().model.layers[0].mlp.up_proj.base_layer
    layer.weight = torch.nn.Parameter(torch.zeros_like(layer.weight, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ConfigError, match="quantised"):
        overlap_of_layers(model)


@pytest.mark.parametrize(
    ("method", "peft_config", "said"),
    [
        ("l2", None, "acts on a LoRA adapter, and full fine-tuning has none"),
        ("selfaug+wise-ft", None, "method='wise-ft' acts on"),
        ("full", LoraConfig(), "trains all weights, but there is an adapter"),
        ("wise-ft", LoraConfig(use_dora=True), "use_dora"),
        ("wise-ft", LoraConfig(modules_to_save=["lm_head"]), "modules_to_save"),
        ("orthogonal", LoraConfig(bias="all"), "bias"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(method: str, peft_config: Any, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_adapter(get_method(method), peft_config)
    assert said in refused.value.message


def test_an_adapter_that_fits_is_taken() -> None:
    for method in ("l2", "wise-ft", "orthogonal", "selfaug", "selfaug+wise-ft"):
        check_adapter(get_method(method), LoraConfig())
    check_adapter(get_method("full"), None)
