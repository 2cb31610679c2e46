"""`talr`: weights down response tokens that are unlikely under the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from selfaug.methods.base import RESPONSE_LOSS, Changes, Method
from selfaug.methods.options import option
from selfaug.objective.response_terms import TALR as TALR_TERM

if TYPE_CHECKING:
    from selfaug.training.config import SelfAugConfig

__all__ = ["TALR"]


class TALR(Method):
    """``loss = Σ max(p[y]^(1/tau), floor) · nll / n_response``; the weight has no gradient.

    Source: arXiv 2509.20758, whose weights are exp(-nll / τ). Differences: weights are not normalised over the batch,
    so a token's weight depends on no other token; τ is a setting instead of a batch's mean loss. Without a floor, τ = 1
    is `dft`, and a large τ approaches plain fine-tuning.
    """

    @dataclass(frozen=True)
    class Options:
        """Options of `talr`."""

        tau: float = option(1.0, "Temperature in nats: a token of this NLL has weight 1/e.", above=0.0)
        floor: float = option(0.01, "Smallest weight; 1 is plain fine-tuning.", least=0.0, most=1.0)

    name: ClassVar[str] = "talr"
    summary: ClassVar[str] = "unlikely response tokens weighted down"
    formula: ClassVar[str] = "sg(max(p[y]^(1/tau), floor)) · NLL"
    source: ClassVar[str] = "2509.20758"
    strength: ClassVar[str] = "tau"
    decides: ClassVar[frozenset[str]] = frozenset({RESPONSE_LOSS})

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return the weighted NLL as the response loss."""
        options = self.options(config)
        return Changes(response_term=TALR_TERM(options.tau, options.floor))
