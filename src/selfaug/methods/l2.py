"""`l2`: keep the update of the weights small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from selfaug.methods.base import Changes, Method
from selfaug.methods.options import option
from selfaug.step.parameter_terms import ParameterTerm, squared_updates

if TYPE_CHECKING:
    from selfaug.training.config import SelfAugConfig

__all__ = ["L2"]


class L2(Method):
    """``loss = Σ nll / n_response + update_weight · Σ_layers ‖ΔW‖²``, ΔW = s · B A, by ``s² tr((BᵀB)(AAᵀ))``.

    The plainest of all controls: distance in the space of weights. Not the optimiser's weight decay, which shrinks A
    and B apart from each other and not their product.
    """

    @dataclass(frozen=True)
    class Options:
        """Of `l2`."""

        update_weight: float = option(0.01, "Weight of the squared size of the update.", least=0.0)

    name: ClassVar[str] = "l2"
    summary: ClassVar[str] = "a penalty on the size of the update"
    formula: ClassVar[str] = "NLL + update_weight·Σ‖s·B·A‖²"
    source: ClassVar[str] = "control"
    needs: ClassVar[str] = "a plain LoRA adapter"
    strength: ClassVar[str] = "update_weight"
    adapter: ClassVar[str] = "lora"

    def changes(self, config: SelfAugConfig) -> Changes:
        """With a weight above 0 the penalty."""
        weight = self.options(config).update_weight
        return Changes(parameter_terms=(ParameterTerm("squared_update", weight, squared_updates),) if weight else ())
