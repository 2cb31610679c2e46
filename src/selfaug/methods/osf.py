"""`osf`: trains the weak singular directions of the pretrained weights, and keeps the strong ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from selfaug.methods.base import ADAPTER_START, Changes, Method
from selfaug.methods.options import option
from selfaug.model.libraries import osf_settings

if TYPE_CHECKING:
    from selfaug.training.config import SelfAugConfig

__all__ = ["OSF"]


class OSF(Method):
    """``W = U_k S_k V_kᵀ + U S Vᵀ``: the k strongest singular triples stay, all others are trained, from W's own.

    Gradients of U and V are projected out of the span of U_k and V_k. The adapter is PEFT's OSF on the modules that the
    LoRA settings name: its rank is what remains of each weight, so `lora_r` and `lora_alpha` have no effect, and no
    setting of it is LoRA. It can be merged, but not unmerged.

    Source: orthogonal subspace fine-tuning, arXiv 2504.07097, by PEFT's code (`OSFConfig`). Differences: PEFT's: one
    share of directions for all layers (the paper's depends on a layer's importance), and only gradients are projected,
    so that AdamW's steps leave the complement.
    """

    @dataclass(frozen=True)
    class Options:
        """Options of `osf`."""

        osf_kept: float = option(0.5, "Share of each weight's singular directions that stay.", least=0.05, most=0.95)

    name: ClassVar[str] = "osf"
    summary: ClassVar[str] = "all but the weights' strongest singular directions are trained"
    formula: ClassVar[str] = "NLL, W = U_k·S_k·V_kᵀ (kept) + U·S·Vᵀ (trained)"
    source: ClassVar[str] = "2504.07097"
    differs: ClassVar[str] = (
        "PEFT's: one share for all layers, and only gradients are projected, so AdamW's steps leave the "
        "complement. Own contract: the rank is what remains, no setting is plain LoRA, no unmerging"
    )
    needs: ClassVar[str] = (
        "linear layers, weights that are not quantised, memory for both sides of their trained directions"
    )
    strength: ClassVar[str] = "osf_kept"
    adapter: ClassVar[str] = "osf"
    decides: ClassVar[frozenset[str]] = frozenset({ADAPTER_START})

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return the adapter that replaces the given LoRA."""
        return Changes(adapter=partial(_settings, kept=self.options(config).osf_kept))


def _settings(given: Any, kept: float) -> Any:
    return given if given.peft_type == "OSF" else osf_settings(given, kept)
