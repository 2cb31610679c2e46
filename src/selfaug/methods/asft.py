"""`asft`: DFT with a KL to the base model on response tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from selfaug.methods.base import RESPONSE_LOSS, Changes, Method
from selfaug.methods.kl_response import RESPONSE_KL
from selfaug.methods.options import option
from selfaug.objective.response_terms import DFT, KL_RESPONSE
from selfaug.step.forward import TermOn

if TYPE_CHECKING:
    from selfaug.training.config import SelfAugConfig

__all__ = ["ASFT"]


class ASFT(Method):
    """``loss = Σ p[y] · nll / n_response + anchor · Σ_drawn KL(base ‖ tuned) / (align_fraction · n_response)``.

    Source: arXiv 2509.23753, with an anchor of 0.05 to 0.1. Differences: both divisors count tokens of the whole
    optimiser step; sequences may be drawn for the KL (`align_fraction`).
    """

    @dataclass(frozen=True)
    class Options:
        """Options of `asft`."""

        anchor: float = option(0.05, "Weight of the KL on response tokens; 0 is `dft`.", least=0.0)

    name: ClassVar[str] = "asft"
    summary: ClassVar[str] = "`dft` and KL(base ‖ tuned) on the response's tokens"
    formula: ClassVar[str] = "sg(p[y]) · NLL + anchor·KL(base ‖ tuned) on response tokens"
    source: ClassVar[str] = "2509.23753"
    differs: ClassVar[str] = "divisors of the whole optimiser step; sequences may be drawn for the KL"
    strength: ClassVar[str] = "anchor"
    decides: ClassVar[frozenset[str]] = frozenset({RESPONSE_LOSS, RESPONSE_KL})

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return DFT's response loss, and the KL if the anchor is above 0."""
        anchor = self.options(config).anchor
        return Changes(response_term=DFT(), added_terms=(TermOn(KL_RESPONSE, "compared", anchor),) if anchor else ())
