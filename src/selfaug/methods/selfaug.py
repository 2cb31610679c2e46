"""`selfaug`: aligns the next-token distributions on the prompt with the base model's while it trains the response."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from selfaug.methods.base import Changes, Method
from selfaug.objective import ALIGNMENT_TERMS
from selfaug.step.forward import TermOn

if TYPE_CHECKING:
    from selfaug.training.config import SelfAugConfig

__all__ = ["SelfAug"]


class SelfAug(Method):
    """``loss = Σ nll / n_response + α · Σ_drawn kl / (f · n_aligned)``, ``f = align_fraction · align_token_fraction``.

    Source: Huang et al., arXiv 2509.03934. Differences: both divisors count tokens of the whole optimiser step, across
    micro-batches and ranks (in the release, of a micro-batch); by default the last prompt position before a response
    belongs to the NLL alone; padding is never aligned; a share of the sequences may be drawn, without bias. `preset`
    selects the settings of the paper or of the release.
    """

    name: ClassVar[str] = "selfaug"
    summary: ClassVar[str] = "NLL on the response + alpha · KL(base ‖ tuned) on the prompt (arXiv 2509.03934)"
    formula: ClassVar[str] = "NLL + α·KL(base ‖ tuned) on aligned positions"
    source: ClassVar[str] = "2509.03934"
    differs: ClassVar[str] = (
        "divisors of the whole optimiser step; by default the boundary belongs to the NLL and α is 2; padding is "
        "never aligned; sequences may be drawn"
    )
    needs: ClassVar[str] = "prompts apart from responses"
    strength: ClassVar[str] = "alpha"
    defaults: ClassVar[dict[str, object]] = {"alpha": 2.0}

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return the alignment, if α is above 0."""
        assert config.align_direction is not None
        if config.alpha == 0:
            return Changes()
        term = TermOn(ALIGNMENT_TERMS[config.align_direction], "aligned", config.alignment_weight)
        return Changes(added_terms=(term,))
