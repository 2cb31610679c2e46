"""Does each known mistake, planted into the real implementation, make a named test fail?

One small function is replaced by a wrong one; then the test that guards it is called and must fail at its comparison.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from selfaug.common.errors import ConfigError
from selfaug.objective import ALIGNMENT_TERMS, TunedToBase
from selfaug.planning import plan
from selfaug.reference import adapter
from selfaug.step import driver
from selfaug.step.micro_batch import MicroBatch
from selfaug.training import trainer
from tests.integration import test_step_oracle as named
from tests.integration.steps import SEQUENCES, run
from tests.unit import test_plan

Patch = pytest.MonkeyPatch
COMPARISON = re.compile(r"^assert [\d.e+-]+ < 1e-06", re.MULTILINE)


def direction_swapped(patch: Patch) -> None:
    patch.setitem(ALIGNMENT_TERMS, "base_to_tuned", TunedToBase())


def boundary_unshifted(patch: Patch) -> None:
    """labels[t] alone decides, as in the release."""

    def wrong(labels_BT: Tensor, documents_BT: Tensor, align_boundary: bool = False) -> Tensor:
        return (labels_BT == -100) & (documents_BT >= 0)

    patch.setattr(plan, "aligned_positions", wrong)


def boundary_late(patch: Patch) -> None:
    """Every aligned position one token late."""
    right = plan.aligned_positions

    def wrong(labels_BT: Tensor, documents_BT: Tensor, align_boundary: bool = False) -> Tensor:
        late_BT = right(labels_BT, documents_BT, align_boundary).roll(1, dims=1)
        return late_BT & (documents_BT >= 0)

    patch.setattr(plan, "aligned_positions", wrong)


def padding_aligned(patch: Patch) -> None:
    patch.setattr(plan, "document_ids", lambda batch, pad_token_id: torch.zeros_like(batch["input_ids"]))


def neighbours_aligned(patch: Patch) -> None:
    right = plan.aligned_positions

    def wrong(labels_BT: Tensor, documents_BT: Tensor, align_boundary: bool = False) -> Tensor:
        return right(labels_BT, torch.zeros_like(documents_BT), align_boundary)

    patch.setattr(plan, "aligned_positions", wrong)


def drawn_divisor(patch: Patch) -> None:
    right = plan.plan_step

    def wrong(batches: Any, *, align_fraction: float, **options: Any) -> plan.StepPlan:
        found = right(batches, align_fraction=align_fraction, **options)
        drawn = sum(micro.aligned_N.numel() for micro in found.micro)
        return replace(found, n_aligned=round(drawn / align_fraction))

    patch.setattr(driver, "plan_step", wrong)


def micro_batch_divisor(patch: Patch) -> None:
    """Each micro-batch is divided by its own tokens, as in the release."""
    right = MicroBatch.divided

    def wrong(micro: MicroBatch, **divisors: Any) -> MicroBatch:
        return right(micro, **{**divisors, "n_response": 3 * micro.counts["response_tokens"]})

    patch.setattr(MicroBatch, "divided", wrong)


def adapter_in_reference(patch: Patch) -> None:
    patch.setattr(adapter, "adapters_off", lambda model: nullcontext())
    patch.setattr(trainer, "check_reference", lambda model, reference, *, fresh: None)


def place_keyed_draw(patch: Patch) -> None:
    """The draw depends on where a sequence is drawn, not on what it is: what a rank's own generator would do."""
    right, calls = plan.draw, iter(range(10**9))

    def wrong(seed: int, step: int, tokens: Tensor, align_fraction: float) -> bool:
        return right(seed + next(calls), step, tokens, align_fraction)

    patch.setattr(plan, "draw", wrong)


def token_draw_keyed_by_place(patch: Patch) -> None:
    right, calls = plan.draw_tokens, iter(range(10**9))

    def wrong(seed: int, step: int, tokens: Tensor, align_token_fraction: float) -> Tensor:
        return right(seed + next(calls), step, tokens, align_token_fraction)

    patch.setattr(plan, "draw_tokens", wrong)


def token_fraction_forgotten(patch: Patch) -> None:
    """The drawn tokens are not weighted by what they stand for."""
    right = MicroBatch.divided

    def wrong(micro: MicroBatch, *, drawn_divisor: float, **divisors: Any) -> MicroBatch:
        return right(micro, drawn_divisor=2 * drawn_divisor, **divisors)

    patch.setattr(MicroBatch, "divided", wrong)


def layouts(layout: str, kind: str) -> Callable[[Path], None]:
    return lambda folder: named.test_layouts(layout, kind, torch.float64, folder)


PLANTED: dict[str, tuple[Callable[[Patch], None], Callable[[Path], None]]] = {
    "direction swapped": (
        direction_swapped,
        lambda folder: named.test_directions_and_boundary("padding", "base_to_tuned", False, folder),
    ),
    "boundary not shifted": (boundary_unshifted, layouts("padding", "single-turn")),
    "boundary late by one": (boundary_late, layouts("packing", "multi-turn")),
    "padding aligned": (padding_aligned, layouts("padding", "single-turn")),
    "packed neighbours aligned": (neighbours_aligned, layouts("padding-free", "odd shapes")),
    "drawn count as divisor": (drawn_divisor, lambda folder: named.test_a_real_draw("padding", folder)),
    "micro-batch as divisor": (micro_batch_divisor, layouts("padding", "single-turn")),
    "adapter on in the reference pass": (adapter_in_reference, layouts("padding", "single-turn")),
    "draw of tokens keyed by place": (
        token_draw_keyed_by_place,
        lambda folder: named.test_a_real_draw_of_tokens("padding", folder),
    ),
    "token fraction not in the divisor": (
        token_fraction_forgotten,
        lambda folder: named.test_a_real_draw_of_tokens("padding", folder),
    ),
    "draw keyed by place": (place_keyed_draw, lambda folder: named.test_a_real_draw("padding", folder)),
}


@pytest.mark.parametrize("error", PLANTED)
def test_a_planted_error_fails_its_test(error: str, tmp_path: Path, monkeypatch: Patch) -> None:
    plant, guard = PLANTED[error]
    guard(tmp_path / "right")  # the precondition: it passes as the code is
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=COMPARISON):
        guard(tmp_path / "wrong")


def test_a_draw_keyed_by_place_fails_the_property(monkeypatch: Patch) -> None:
    place_keyed_draw(monkeypatch)
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        test_plan.test_the_draw_is_the_same_under_any_split()


def test_an_adapter_left_on_is_refused_before_the_first_step(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(adapter, "adapters_off", lambda model: nullcontext())
    with pytest.raises(ConfigError, match="moves when the trained weights do"):
        run(SEQUENCES["single-turn"], tmp_path)
