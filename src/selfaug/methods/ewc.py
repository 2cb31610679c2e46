"""`ewc`: keep the update small where the base depends on the weight."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from selfaug.data.files import data_files
from selfaug.methods.base import Changes, Method
from selfaug.methods.options import option
from selfaug.methods.requests import Texts
from selfaug.step.parameter_terms import ParameterTerm, weighted_updates

if TYPE_CHECKING:
    from selfaug.training.config import SelfAugConfig

__all__ = ["EWC"]


class EWC(Method):
    """``loss = Σ nll / n_response + ewc_weight · Σ_i F_i Δ_i²``, Δ = s · B A, F the base's diagonal Fisher information.

    ``½ Σ F_i Δ_i²`` is what the diagonal sees of KL(base ‖ tuned) in nats a token, so `ewc_weight` is on the scale of
    half an α. F is estimated with tokens drawn from the base itself (``selfaug/before/fisher.py``), per token, over
    `fisher_rows` rows of `fisher_data`, or of the training prompts where no data is given. It takes as much memory
    as the adapted weights do in float32.

    Source: elastic weight consolidation, arXiv 1612.00796. We differ in: the centre is the base, whose own training
    data is not at hand, so other texts stand in for it; one factor of ½ is left to the weight.
    """

    @dataclass(frozen=True)
    class Options:
        """Of `ewc`."""

        ewc_weight: float = option(1.0, "Weight of the penalty; 0 is plain fine-tuning.", least=0.0)
        fisher_data: str | None = option(
            None, "File or folder of texts that say which weights matter; the training prompts by default.", path=True
        )
        fisher_rows: int = option(256, "How many of its rows are read, drawn by the seed.", least=1)

    name: ClassVar[str] = "ewc"
    summary: ClassVar[str] = "a penalty on the update, weighted by the base's Fisher information"
    formula: ClassVar[str] = "NLL + ewc_weight·Σ F·(s·B·A)², F diagonal, of the base, per token"
    source: ClassVar[str] = "1612.00796"
    needs: ClassVar[str] = (
        "a plain LoRA adapter, weights that are not quantised, memory for one float32 copy of the adapted weights"
    )
    strength: ClassVar[str] = "ewc_weight"
    adapter: ClassVar[str] = "lora"

    def check(self, config: SelfAugConfig) -> None:
        """The texts must be there."""
        named = self.options(config).fisher_data
        if named is not None:
            data_files(Path(named))

    def changes(self, config: SelfAugConfig) -> Changes:
        """With a weight above 0 the penalty, and the texts that its weights are estimated on."""
        options = self.options(config)
        if not options.ewc_weight:
            return Changes()
        return Changes(
            fisher=Texts(None if options.fisher_data is None else Path(options.fisher_data), options.fisher_rows),
            parameter_terms=(ParameterTerm("weighted_update", options.ewc_weight, weighted_updates),),
        )
