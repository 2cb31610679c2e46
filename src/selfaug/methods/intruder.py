"""`intruder`: shrinks, after training, the strong singular directions that the pretrained weights do not have."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from selfaug.methods.base import Changes, Method
from selfaug.methods.options import option
from selfaug.model.libraries import reduce_intruders

if TYPE_CHECKING:
    from selfaug.training.config import SelfAugConfig

__all__ = ["Intruder"]


class Intruder(Method):
    """``W + ΔW - (1 - intruder_scale) Σ_j σ_j u_j v_jᵀ`` after training, ΔW then cut to the adapter's rank again.

    σ_j, u_j, v_j are those of the `intruder_top` strongest singular triples of W + ΔW whose u_j has a cosine below
    `intruder_cosine` with every left singular vector of W. PEFT computes it (`reduce_intruder_dimension`). Checkpoints
    contain the adapter as trained. The cut loses what the difference has beyond the adapter's rank.

    Source: arXiv 2410.21228. Differences: PEFT's cut to the adapter's rank.
    """

    @dataclass(frozen=True)
    class Options:
        """Options of `intruder`."""

        intruder_scale: float = option(0.75, "Factor on new directions; 1 is plain fine-tuning.", least=0.0, most=1.0)
        intruder_top: int = option(10, "Number of the strongest directions that are looked at.", least=1)
        intruder_cosine: float = option(0.5, "Largest cosine with a pretrained direction.", above=0.0, most=1.0)

    name: ClassVar[str] = "intruder"
    summary: ClassVar[str] = "new strong directions of the weights shrunk when training is over"
    formula: ClassVar[str] = "NLL; afterwards W + ΔW - (1 - intruder_scale)·Σσ·u·vᵀ over new directions, cut to rank R"
    source: ClassVar[str] = "2410.21228"
    differs: ClassVar[str] = (
        "PEFT's: the difference is cut to the adapter's rank. Own contract: acts afterwards alone, checkpoints "
        "hold the adapter as trained"
    )
    needs: ClassVar[str] = "a plain LoRA adapter, weights that are not quantised"
    strength: ClassVar[str] = "intruder_scale"
    adapter: ClassVar[str] = "lora"
    reads_weights: ClassVar[bool] = True

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return the change after training, with a scale below 1."""
        o = self.options(config)
        if o.intruder_scale == 1:
            return Changes()
        shrink = partial(reduce_intruders, top=o.intruder_top, cosine=o.intruder_cosine, scale=o.intruder_scale)
        return Changes(finish=(shrink,))
