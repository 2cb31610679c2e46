"""`l2`: penalises the size of the update of the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from selfaug.methods.base import Changes, Method
from selfaug.methods.options import option
from selfaug.step.parameter_terms import ParameterTerm, l2_penalty

if TYPE_CHECKING:
    from selfaug.training.config import SelfAugConfig

__all__ = ["L2"]


class L2(Method):
    """``loss = Σ nll / n_response + update_weight · Σ_layers ‖ΔW‖²``, ΔW = s · B A, by ``s² tr((BᵀB)(AAᵀ))``.

    This is the plainest control: distance in weight space. It differs from the optimiser's weight decay, which shrinks
    A and B separately instead of their product.
    """

    @dataclass(frozen=True)
    class Options:
        """Options of `l2`."""

        update_weight: float = option(0.01, "Weight of the squared size of the update.", least=0.0)

    name: ClassVar[str] = "l2"
    summary: ClassVar[str] = "a penalty on the size of the update"
    formula: ClassVar[str] = "NLL + update_weight·Σ‖s·B·A‖²"
    source: ClassVar[str] = "control"
    needs: ClassVar[str] = "a plain LoRA adapter"
    strength: ClassVar[str] = "update_weight"
    adapter: ClassVar[str] = "lora"

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return the penalty, if its weight is above 0."""
        weight = self.options(config).update_weight
        return Changes(parameter_terms=(ParameterTerm("squared_update", weight, l2_penalty),) if weight else ())
