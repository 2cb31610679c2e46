"""`ewc`: penalises the update of weights on which the base depends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from selfaug.data.files import data_files
from selfaug.methods.base import Changes, Method
from selfaug.methods.options import option
from selfaug.methods.requests import Texts
from selfaug.step.parameter_terms import ParameterTerm, ewc_penalty

if TYPE_CHECKING:
    from selfaug.training.config import SelfAugConfig

__all__ = ["EWC"]


class EWC(Method):
    """``loss = Σ nll / n_response + ewc_weight · Σ_i F_i Δ_i²``, Δ = s · B A, F the base's diagonal Fisher information.

    ``½ Σ F_i Δ_i²`` is the diagonal approximation of KL(base ‖ tuned) in nats a token, so `ewc_weight` is on the scale
    of half an α. F is estimated per token with tokens drawn from the base (``selfaug/before/fisher.py``), over
    `fisher_rows` rows of `fisher_data`, or of the training prompts if no data is given. It takes as much memory as the
    adapted weights in float32.

    Source: elastic weight consolidation, arXiv 1612.00796. Differences: the centre is the base, whose training data is
    not available, so other texts replace it; the factor ½ is left to the weight.
    """

    @dataclass(frozen=True)
    class Options:
        """Options of `ewc`."""

        ewc_weight: float = option(1.0, "Weight of the penalty; 0 is plain fine-tuning.", least=0.0)
        fisher_data: str | None = option(
            None, "File or folder of texts for the Fisher information; the training prompts by default.", path=True
        )
        fisher_rows: int = option(256, "Number of its rows that are read, drawn by the seed.", least=1)

    name: ClassVar[str] = "ewc"
    summary: ClassVar[str] = "a penalty on the update, weighted by the base's Fisher information"
    formula: ClassVar[str] = "NLL + ewc_weight·Σ F·(s·B·A)², F diagonal, of the base, per token"
    source: ClassVar[str] = "1612.00796"
    differs: ClassVar[str] = (
        "the base's own data is replaced by given texts, by default the training prompts; no factor ½"
    )
    needs: ClassVar[str] = (
        "a plain LoRA adapter, weights that are not quantised, memory for one float32 copy of the adapted weights"
    )
    strength: ClassVar[str] = "ewc_weight"
    adapter: ClassVar[str] = "lora"

    def check(self, config: SelfAugConfig) -> None:
        """Raise if the texts do not exist."""
        data = self.options(config).fisher_data
        if data is not None:
            data_files(Path(data))

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return the penalty and the texts for its Fisher information, if the weight is above 0."""
        options = self.options(config)
        if not options.ewc_weight:
            return Changes()
        return Changes(
            fisher=Texts(None if options.fisher_data is None else Path(options.fisher_data), options.fisher_rows),
            parameter_terms=(ParameterTerm("weighted_update", options.ewc_weight, ewc_penalty),),
        )
