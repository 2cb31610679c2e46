"""Does a step equal the oracle for every reference and every way of training the head?

`initial` with a start that is not the base, a path with full fine-tuning (tied and untied heads), `modules_to_save`.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from tests.integration.steps import SEQUENCES, TOLERANCE, oracle_step, run
from tests.models import adapter_name, lora_config, perturb_adapter, tiny, with_lora
from tests.oracles.step import Gradients, relative_distance, step_gradient

SEEN = SEQUENCES["single-turn"][:4] + SEQUENCES["multi-turn"][:2]


def oracle(base: Any, tuned: nn.Module, **settings: Any) -> Gradients:
    options = {"alpha": 2.0, "direction": "base_to_tuned", "align_boundary": False, **settings}
    return step_gradient(base, tuned, SEEN, **options)[1]


def perturb_all(model: nn.Module) -> None:
    """Every trained weight moves, by its name: what training would do to a full model or a saved module."""
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                key = sum(adapter_name(name).encode()) + parameter.numel()
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64)
                parameter.add_(0.05 * noise)


@pytest.mark.parametrize("layout", ["padding", "padding-free"])
def test_initial_is_the_adapter_as_training_began(layout: str, tmp_path: Path) -> None:
    start = with_lora(tiny("llama"), seed=5)
    ran = run(SEEN, tmp_path, model=start, reference="initial", padding_free=layout == "padding-free", max_steps=2)
    tuned = with_lora(tiny("llama"))
    expected = oracle(lambda: with_lora(tiny("llama"), seed=5), tuned)
    assert relative_distance(oracle(lambda: tiny("llama"), tuned), expected) > 0.1  # the start is not the base
    for gradient in ran.gradients:
        assert relative_distance(gradient, expected) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("reference", ["base", "initial"])
def test_the_reference_pass_leaves_nothing_behind_in_autocast(
    reference: str, checkpointing: bool, tmp_path: Path
) -> None:
    """In bfloat16 autocast keeps copies of the trained weights; those of the reference pass are not the tuned ones."""
    expected = oracle_step(SEEN, dtype=torch.float32).gradient()[1]
    ran = run(
        SEEN,
        tmp_path,
        dtype=torch.float32,
        reference=reference,
        bf16=True,
        gradient_checkpointing=checkpointing,
    )
    assert ran.trainer is not None
    assert ran.trainer.accelerator.mixed_precision == "bf16"
    # bfloat16 keeps 8 bits of each product; a gradient of other weights is another one altogether.
    assert 1e-4 < relative_distance(ran.gradient, expected) < 0.1


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gemma3_text", "cohere"])
def test_full_fine_tuning_against_a_path(arch: str, tmp_path: Path) -> None:
    """The head is trained; Qwen2, Gemma and Cohere tie it to the embedding."""
    base = tiny(arch)
    base.save_pretrained(tmp_path / "base")
    model = tiny(arch).train()
    ran = run(
        SEEN,
        tmp_path / "run",
        arch=arch,
        model=model,
        perturb=perturb_all,
        reference=str(tmp_path / "base"),
        align_direction="tuned_to_base",
    )
    tuned = tiny(arch)
    perturb_all(tuned)
    expected = oracle(lambda: tiny(arch), tuned, direction="tuned_to_base")
    assert any("lm_head" in name for name in expected) or base.config.tie_word_embeddings
    assert relative_distance(ran.gradient, expected) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("reference", ["base", "initial"])
def test_a_head_that_is_trained_beside_the_adapter(reference: str, tmp_path: Path) -> None:
    """modules_to_save copies the head: the tuned model has the copy, the base the original."""

    def config() -> LoraConfig:
        made = lora_config("llama", targets=["q_proj", "up_proj"])
        made.modules_to_save = ["lm_head"]
        return made

    ran = run(SEEN, tmp_path, peft_config=config(), perturb=perturb_both, reference=reference)
    tuned = get_peft_model(copy.deepcopy(tiny("llama")), config(), autocast_adapter_dtype=False)
    perturb_both(tuned)
    expected = oracle(lambda: tiny("llama"), tuned)
    assert any("lm_head" in name for name in expected)
    assert relative_distance(ran.gradient, expected) < TOLERANCE[torch.float64]


def perturb_both(model: nn.Module) -> None:
    perturb_adapter(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lm_head.modules_to_save" in name:
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
                parameter.add_(0.1 * noise)
