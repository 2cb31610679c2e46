"""`wise-ft`: when training is over, go part of the way back to the base."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch

from selfaug.methods.base import Changes, Method
from selfaug.methods.options import option
from selfaug.model.libraries import lora_pairs

if TYPE_CHECKING:
    from torch import nn

    from selfaug.training.config import SelfAugConfig

__all__ = ["WiseFT"]


class WiseFT(Method):
    """``θ = θ_base + adapter_scale · ΔW`` after training: 0 is the base, to the bit, and 1 the tuned model.

    Source: arXiv 2109.01903, which interpolates all weights of base and tuned model; with LoRA that is scaling the
    update, so each B is multiplied once training has finished. Checkpoints hold the adapter as it is trained; the
    finished one is scaled. Full fine-tuning is refused: the base's weights are no longer at hand.
    """

    @dataclass(frozen=True)
    class Options:
        """Of `wise-ft`."""

        adapter_scale: float = option(
            0.5, "How much of the update is kept: 0 is the base, 1 the tuned model.", least=0.0, most=1.0
        )

    name: ClassVar[str] = "wise-ft"
    summary: ClassVar[str] = "the update scaled down when training is over"
    formula: ClassVar[str] = "NLL; afterwards base + adapter_scale·update"
    source: ClassVar[str] = "2109.01903"
    needs: ClassVar[str] = "a plain LoRA adapter"
    strength: ClassVar[str] = "adapter_scale"
    adapter: ClassVar[str] = "lora"

    def changes(self, config: SelfAugConfig) -> Changes:
        """The update scaled when training is over."""
        return Changes(finish=(partial(_scale, factor=self.options(config).adapter_scale),))


@torch.no_grad()
def _scale(model: nn.Module, factor: float) -> None:
    for pair in lora_pairs(model):
        pair.B.mul_(factor)
