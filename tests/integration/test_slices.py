"""Does a long prompt in slices give the reference's hidden states, and does a slice bound what exists at once?"""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from selfaug.model.parts import body_of
from selfaug.planning.reference_batch import slice_size
from selfaug.reference import passes
from selfaug.reference.passes import batch_hidden, can_slice, sliced_hidden, slices_agree
from selfaug.step import driver as driver_module
from selfaug.step.driver import KEY, StepDriver
from selfaug.training.trainer import SelfAugTrainer
from tests.integration.steps import SEQUENCES, TOLERANCE, oracle_step, run
from tests.models import ARCHITECTURES, tiny
from tests.oracles.step import relative_distance

# Layers with a state beside keys and values: left whole, since their kernels on a GPU have not been tried in slices.
NOT_IN_SLICES = ("falcon_h1", "lfm2")
IDS_T = torch.randint(3, 97, (45,), generator=torch.Generator().manual_seed(4))


def hidden(model: Any, index_N: torch.Tensor, size: int) -> torch.Tensor:
    with torch.no_grad():
        return sliced_hidden(model, IDS_T, index_N, size)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_slices_equal_the_whole(arch: str) -> None:
    """45 tokens in slices shorter and longer than the sliding windows of 8, with edges inside and between them."""
    model = tiny(arch)
    assert can_slice(model.config) == (arch not in NOT_IN_SLICES)
    if arch in NOT_IN_SLICES:
        return
    with torch.no_grad():
        whole_TH = batch_hidden(model, {"input_ids": IDS_T[None]})
        assert slices_agree(model, IDS_T[:8])
    for size in (1, 7, 16, 44, 45):
        for index_N in (torch.arange(45), torch.tensor([0, 6, 7, 15, 16, 43]), torch.tensor([44])):
            expected_NH = whole_TH[index_N]
            got_NH = hidden(model, index_N, size)
            # Rotary tables and norms are float32 on both sides; other row counts add in another order.
            assert ((got_NH - expected_NH).norm() / expected_NH.norm()).item() < 1e-6


def test_the_mask_of_a_slice_is_bounded() -> None:
    for tokens in (1, 5000, 8192, 32_768, 131_072, 262_144):
        size = slice_size(tokens, 4096)
        assert 256 <= size <= 4096
        assert size * tokens <= 2**26
    assert slice_size(8192, 4096) == 4096
    assert slice_size(32_768, 4096) == 2048
    assert slice_size(32_768, 5) == 5


def test_only_drawn_positions_are_kept() -> None:
    kept_NH = hidden(tiny("llama"), torch.tensor([3, 40]), 10)
    assert kept_NH.shape == (2, 32)
    assert kept_NH.untyped_storage().nbytes() == 2 * 32 * 8


LAYOUTS: dict[str, dict[str, Any]] = {
    "padding": {},
    "packing": {"packing": True, "max_length": 48, "per_device_train_batch_size": 1},
    "padding-free": {"padding_free": True},
}


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("arch", ["mistral", "gemma3_text"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_in_slices_equals_the_oracle(layout: str, arch: str, fraction: float, tmp_path: Path) -> None:
    """Short prompts in their batch, long ones after them; no pass sees more tokens than a slice or a short batch."""
    chosen = SEQUENCES["single-turn"][:4] + SEQUENCES["multi-turn"][:2]
    seen: list[int] = []

    def watch(trainer: SelfAugTrainer) -> None:
        def note(module: Any, given: Any, named: dict[str, Any]) -> None:
            if not torch.is_grad_enabled():
                seen.append(named["input_ids"].shape[1])

        body_of(trainer.model.get_base_model()).register_forward_pre_hook(note, with_kwargs=True)

    settings = {**LAYOUTS[layout], "gradient_accumulation_steps": 6, "check_reference": False}
    settings |= {"align_token_fraction": fraction, "seed": 5}
    whole = run(chosen, tmp_path / "whole", arch=arch, reference_slice=0, **settings)
    ran = run(chosen, tmp_path / "slices", arch=arch, reference_slice=7, change=watch, **settings)
    plans = [batch["selfaug"] for batch in ran.batches[0]]
    assert any(plan.long for plan in plans)
    assert max(length for length in seen if length) <= 14  # two short prompts in a row
    assert relative_distance(ran.gradient, whole.gradient) < TOLERANCE[torch.float64]
    if fraction == 1.0:
        expected = oracle_step(chosen, arch=arch).gradient()[1]
        assert relative_distance(ran.gradient, expected) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("reference", ["base", "initial"])
def test_slices_serve_every_reference(reference: str, tmp_path: Path) -> None:
    chosen = SEQUENCES["single-turn"][:4]
    ran = run(chosen, tmp_path, reference=reference, reference_slice=5)
    assert any(batch["selfaug"].long for batch in ran.batches[0])
    assert relative_distance(ran.gradient, oracle_step(chosen).gradient()[1]) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("arch", NOT_IN_SLICES)
def test_a_hybrid_takes_its_prompts_at_once(arch: str, tmp_path: Path) -> None:
    chosen = SEQUENCES["single-turn"][:2]
    ran = run(chosen, tmp_path, arch=arch, reference_slice=5)
    assert not any(batch["selfaug"].long for batch in ran.batches[0])
    assert relative_distance(ran.gradient, oracle_step(chosen, arch=arch).gradient()[1]) < TOLERANCE[torch.float64]


def test_a_model_that_disagrees_with_its_slices_is_left_whole_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("transformers.DynamicCache.update", lambda self, keys, values, *more, **named: (keys, values))
    chosen = SEQUENCES["single-turn"][:2]
    with caplog.at_level(logging.WARNING, logger="selfaug.training.trainer"):
        ran = run(chosen, tmp_path, reference_slice=5)
    assert "reference_slice has no effect" in caplog.text
    assert not any(batch["selfaug"].long for batch in ran.batches[0])


def test_methods_that_hold_responses_slice_and_those_that_catch_activations_do_not(tmp_path: Path) -> None:
    chosen = SEQUENCES["single-turn"]
    method = {"method": "selfaug+kl-response", "align_fraction": 0.5, "align_token_fraction": 0.5, "seed": 5}
    whole = run(chosen, tmp_path / "whole", reference_slice=0, **method)
    ran = run(chosen, tmp_path / "slices", reference_slice=5, **method)
    assert any(batch["selfaug"].long for batch in ran.batches[0])
    assert relative_distance(ran.gradient, whole.gradient) < TOLERANCE[torch.float64]
    ran = run(chosen, tmp_path / "activations", reference_slice=5, method="align-q")
    assert not any(batch["selfaug"].long for batch in ran.batches[0])


def test_no_slices_where_they_are_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = run(SEQUENCES["single-turn"][:2], tmp_path, reference_slice=5)
    assert ran.trainer is not None
    assert ran.trainer._slice_tokens(catches_activations=False) == 5
    monkeypatch.setattr(passes, "body_of", lambda model: pytest.fail("a pass"))
    ran.trainer.args.reference_slice = 0
    assert ran.trainer._slice_tokens(catches_activations=False) is None


def test_ranks_of_a_sharded_model_run_as_many_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that runs fewer passes than another, which has longer prompts, would leave it waiting."""
    ran = run(SEQUENCES["single-turn"][:2], tmp_path, reference_slice=5)
    assert ran.trainer is not None
    # The other rank runs three passes more in each micro-batch.
    monkeypatch.setattr(driver_module, "begin_reduce", lambda mine, kind: lambda: mine + 3)
    alone = ran.trainer.driver
    calls: list[int] = []
    body_of(ran.trainer.base_model).register_forward_hook(lambda *_: calls.append(1))

    def counted(sharded: bool) -> tuple[int, torch.Tensor]:
        ranks = SimpleNamespace(num_processes=1, device="cpu")
        driver = StepDriver(alone.objective, alone.draw, alone.layout, ranks, sharded=sharded)
        batch = {name: value for name, value in ran.batches[0][0].items() if name != KEY}
        driver.take([batch], 0)
        assert batch[KEY].long, "no prompt is cut into slices"
        calls.clear()
        loss = driver.loss(ran.trainer.base_model, batch, accumulated=1).loss
        return len(calls), loss.detach()

    passes_alone, loss_alone = counted(sharded=False)
    passes_sharded, loss_sharded = counted(sharded=True)
    assert passes_alone > 2
    assert passes_sharded == passes_alone + 3
    torch.testing.assert_close(loss_sharded, loss_alone, rtol=0, atol=0)
