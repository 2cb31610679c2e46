"""Does a step equal the oracle on every architecture: soft caps, scaled logits, mixtures, hybrids, tied heads?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.steps import SEQUENCES, TOLERANCE, oracle_step, run
from tests.models import ARCHITECTURES, MIXTURES, tiny
from tests.oracles.step import relative_distance

SEEN = SEQUENCES["single-turn"][:4] + SEQUENCES["multi-turn"][:2]
# Recurrent and convolutional layers carry state over document boundaries unless a CUDA kernel resets it.
STATEFUL = ("falcon_h1", "lfm2")
# Eager attention takes its softmax in float32, where the float64 mask of a padding row beyond the sliding window is
# minus infinity throughout and gives NaN; in float32 and bfloat16 the mask is finite.
FLOAT32 = ("gemma2",)


@pytest.mark.parametrize("layout", ["padding", "padding-free"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_step_equals_the_oracle(arch: str, layout: str, tmp_path: Path) -> None:
    if layout == "padding-free" and arch in STATEFUL:
        with pytest.raises(ValueError, match="can't keep packed sequences apart"):
            run(SEEN, tmp_path, arch=arch, padding_free=True)
        return
    dtype = torch.float32 if arch in FLOAT32 else torch.float64
    settings: dict[str, Any] = {"padding_free": layout == "padding-free", "router_aux_loss_coef": 0.0}
    ran = run(SEEN, tmp_path, arch=arch, dtype=dtype, alpha=2.0, **settings)
    loss, expected = oracle_step(SEEN, arch=arch, dtype=dtype).gradient()
    assert relative_distance(ran.gradient, expected) < TOLERANCE[dtype]
    assert ran.losses == pytest.approx([loss], rel=1e-5)
    without = oracle_step(SEEN, arch=arch, dtype=dtype, alpha=0.0).gradient()[1]
    assert relative_distance(without, expected) > 0.05  # the alignment is a part of it worth testing


@pytest.mark.parametrize("arch", MIXTURES)
def test_the_balancing_loss_of_a_mixture_is_kept(arch: str, tmp_path: Path) -> None:
    """With router_aux_loss_coef > 0 the loss gains what transformers' own auxiliary loss adds, weighted by it."""
    weight = 0.5
    seen = SEEN[:2]
    plain = run(seen, tmp_path / "without", arch=arch, router_aux_loss_coef=0.0)
    balanced = run(seen, tmp_path / "with", arch=arch, router_aux_loss_coef=weight)
    assert balanced.trainer is not None
    model = balanced.trainer.model
    (batch,) = balanced.batches[0]
    with torch.no_grad():
        outputs = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            output_router_logits=True,
            use_cache=False,
        )
    expected = plain.losses[0] + weight * outputs.aux_loss.item()
    assert outputs.aux_loss.item() > 0.1
    assert balanced.losses == pytest.approx([expected], rel=1e-5)


def test_there_are_enough_architectures() -> None:
    assert len(ARCHITECTURES) >= 12
    kinds = {type(tiny(arch)).__name__ for arch in ARCHITECTURES}
    assert len(kinds) == len(ARCHITECTURES)
