"""`orthogonal`: penalises an adapter that reads directions on which the pretrained weights act strongly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from selfaug.methods.base import Changes, Method
from selfaug.methods.options import option
from selfaug.step.parameter_terms import ParameterTerm, overlap_of_layers

if TYPE_CHECKING:
    from selfaug.training.config import SelfAugConfig

__all__ = ["Orthogonal"]


class Orthogonal(Method):
    """``loss = Σ nll / n_response + overlap_weight · mean_layers I · ‖W Aᵀ‖² / (‖W‖² ‖A‖²)``.

    Source: after O-LoRA (arXiv 2310.14152), which keeps a new task's A orthogonal to those of earlier tasks,
    ``‖A_old Aᵀ‖²``. Here the earlier task is pretraining, and W replaces A_old. A pretrained W mostly has full rank, so
    no direction is orthogonal to it, and its singular values weight the directions. Divided by both norms, the term is
    1 for an average direction and cannot be lowered by shrinking A. The comparison with an "orthogonal loss" in arXiv
    2509.03934 gives no formula and no weight; both are ours.
    """

    @dataclass(frozen=True)
    class Options:
        """Options of `orthogonal`."""

        overlap_weight: float = option(
            1.0, "Weight of the overlap of the adapter with the pretrained weights.", least=0.0
        )

    name: ClassVar[str] = "orthogonal"
    summary: ClassVar[str] = "a penalty on the adapter's overlap with the pretrained weights"
    formula: ClassVar[str] = "NLL + overlap_weight·mean over layers of I·‖W·Aᵀ‖² / (‖W‖²·‖A‖²), W: O × I"
    source: ClassVar[str] = "after 2310.14152"
    needs: ClassVar[str] = "a plain LoRA adapter, weights that are not quantised"
    strength: ClassVar[str] = "overlap_weight"
    adapter: ClassVar[str] = "lora"

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return the penalty, if its weight is above 0."""
        weight = self.options(config).overlap_weight
        return Changes(parameter_terms=(ParameterTerm("overlap", weight, overlap_of_layers),) if weight else ())
