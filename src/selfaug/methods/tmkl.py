"""`tmkl`: keeps the distribution over all tokens but the gold one close to the base while it trains the gold one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from selfaug.methods.base import Changes, Method
from selfaug.methods.options import option
from selfaug.objective.response_terms import WithoutGold
from selfaug.step.forward import TermOn

if TYPE_CHECKING:
    from selfaug.training.config import SelfAugConfig

__all__ = ["TMKL"]


class TMKL(Method):
    """``loss = Σ nll / n_response + mask_weight · Σ_drawn KL(base' ‖ tuned') / (align_fraction · n_response)``.

    base' and tuned' are the next-token distributions at response positions without the gold token, renormalised. The
    NLL moves mass to the gold token, and the KL keeps the distribution over the rest.

    Source: arXiv 2605.29498. Differences: divisors count tokens of the whole optimiser step, sequences may be drawn
    (`align_fraction`), and the default weight is ours.
    """

    @dataclass(frozen=True)
    class Options:
        """Options of `tmkl`."""

        mask_weight: float = option(0.5, "Weight of the KL without the gold token.", least=0.0)

    name: ClassVar[str] = "tmkl"
    summary: ClassVar[str] = "KL(base ‖ tuned) on response tokens without the gold token"
    formula: ClassVar[str] = "NLL + mask_weight·KL(base' ‖ tuned') on response tokens, ' = without y, renormalised"
    source: ClassVar[str] = "2605.29498"
    differs: ClassVar[str] = (
        "the direction of the KL is from a description alone; the weight is ours; divisors of the whole optimiser "
        "step; sequences may be drawn"
    )
    strength: ClassVar[str] = "mask_weight"

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return the KL, if its weight is above 0."""
        weight = self.options(config).mask_weight
        return Changes(added_terms=(TermOn(WithoutGold(), "compared", weight),) if weight else ())
