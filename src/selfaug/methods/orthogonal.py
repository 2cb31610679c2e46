"""`orthogonal`: let the adapter read directions on which the pretrained weights act little."""

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

    After O-LoRA (arXiv 2310.14152), which keeps a new task's A orthogonal to those of earlier tasks, ``‖A_old Aᵀ‖²``;
    here the earlier task is pretraining, and W stands where A_old did. A pretrained W mostly has full rank, so nothing
    is orthogonal to all of it: W's own lengths say how much each direction counts. Divided by both sizes, the term is 1
    for the average direction and cannot be lowered by shrinking A. The paper that compares with "orthogonal loss"
    (arXiv 2509.03934) gives no formula and no weight; both are ours.
    """

    @dataclass(frozen=True)
    class Options:
        """Of `orthogonal`."""

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
        """With a weight above 0 the penalty."""
        weight = self.options(config).overlap_weight
        return Changes(parameter_terms=(ParameterTerm("overlap", weight, overlap_of_layers),) if weight else ())
