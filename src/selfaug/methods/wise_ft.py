"""`wise-ft`: scales the update down after training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch

from selfaug.methods.base import Changes, Method
from selfaug.methods.options import option
from selfaug.model.libraries import lora_pairs
from selfaug.model.sharding import held, released

if TYPE_CHECKING:
    from torch import nn

    from selfaug.training.config import SelfAugConfig

__all__ = ["WiseFT"]


class WiseFT(Method):
    """``θ = θ_base + adapter_scale · ΔW`` after training: 0 is exactly the base, 1 the tuned model.

    Source: arXiv 2109.01903, which interpolates all weights of base and tuned model. With LoRA that scales the update,
    so each B is multiplied after training. Checkpoints contain the unscaled adapter, the export the scaled one. Full
    fine-tuning is refused, since the base's weights are no longer in memory.
    """

    @dataclass(frozen=True)
    class Options:
        """Options of `wise-ft`."""

        adapter_scale: float = option(
            0.5, "Factor on the update: 0 is the base, 1 the tuned model.", least=0.0, most=1.0
        )

    name: ClassVar[str] = "wise-ft"
    summary: ClassVar[str] = "the update scaled down when training is over"
    formula: ClassVar[str] = "NLL; afterwards base + adapter_scale·update"
    source: ClassVar[str] = "2109.01903"
    differs: ClassVar[str] = "scales the adapter instead of interpolating all weights"
    needs: ClassVar[str] = "a plain LoRA adapter"
    strength: ClassVar[str] = "adapter_scale"
    adapter: ClassVar[str] = "lora"

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return the scaling of the update after training."""
        return Changes(finish=(partial(_scale, factor=self.options(config).adapter_scale),))


@torch.no_grad()
def _scale(model: nn.Module, factor: float) -> None:
    for pair in lora_pairs(model):
        held(pair.B).mul_(factor)
        released(pair.B)
