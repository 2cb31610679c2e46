"""`orthogonal`: penalises an adapter that reads directions on which the pretrained weights act strongly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from selfaug.methods.base import Changes, Method
from selfaug.methods.options import option
from selfaug.step.parameter_terms import ParameterTerm, absolute_overlap_of_layers, overlap_of_layers

if TYPE_CHECKING:
    from selfaug.training.config import SelfAugConfig

__all__ = ["Orthogonal"]


class Orthogonal(Method):
    """``loss = Σ nll / n_response + overlap_weight · overlap(W, A)``, by `overlap_form`.

    ``relative``: ``mean_layers I · ‖W Aᵀ‖² / (‖W‖² ‖A‖²)``; ``absolute``: ``Σ_layers Σ |W Aᵀ|``.

    Source: after O-LoRA (arXiv 2310.14152), which keeps a new task's A orthogonal to those of earlier tasks by
    λ · Σ_layers Σ |A_old Aᵀ|, λ = 0.5. Here the earlier task is pretraining, and W replaces A_old: ``absolute`` is that
    sum. A pretrained W mostly has full rank, so no direction is orthogonal to it, and its singular values weight the
    directions; ``absolute`` also falls as A shrinks, ``relative`` (ours) does not depend on the scale of either and is
    1 for an average direction. The comparison with an "orthogonal loss" in arXiv 2509.03934 gives no formula.
    """

    @dataclass(frozen=True)
    class Options:
        """Options of `orthogonal`."""

        overlap_weight: float = option(
            1.0, "Weight of the overlap of the adapter with the pretrained weights.", least=0.0
        )
        overlap_form: str = option(
            "relative", "Whether the overlap depends on the sizes of the weights.", choices=("relative", "absolute")
        )

    name: ClassVar[str] = "orthogonal"
    summary: ClassVar[str] = "a penalty on the adapter's overlap with the pretrained weights"
    formula: ClassVar[str] = "NLL + overlap_weight·mean over layers of I·‖W·Aᵀ‖² / (‖W‖²·‖A‖²), or ·Σ|W·Aᵀ|, W: O × I"
    source: ClassVar[str] = "after 2310.14152"
    differs: ClassVar[str] = "the pretrained weight takes the place of earlier tasks' A; the relative form is only ours"
    needs: ClassVar[str] = "a plain LoRA adapter, weights that are not quantised"
    strength: ClassVar[str] = "overlap_weight"
    adapter: ClassVar[str] = "lora"

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return the penalty, if its weight is above 0."""
        options = self.options(config)
        if not options.overlap_weight:
            return Changes()
        value = overlap_of_layers if options.overlap_form == "relative" else absolute_overlap_of_layers
        return Changes(parameter_terms=(ParameterTerm("overlap", options.overlap_weight, value),))
