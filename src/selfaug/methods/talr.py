"""`talr`: learn less from response tokens that the model finds unlikely."""

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
    """``loss = Σ max(p[y]^(1/tau), floor) · nll / n_response``, the weight held constant.

    Source: arXiv 2509.20758, whose weights are exp(-nll / τ). We differ in: they are not normalised over the batch,
    so a token's weight depends on no other token, and τ is a setting instead of a batch's mean loss; τ = 1 and no
    floor is `dft`.
    """

    @dataclass(frozen=True)
    class Options:
        """Of `talr`."""

        tau: float = option(1.0, "Temperature in nats: a token of this NLL weighs 1/e; large is plain.", above=0.0)
        floor: float = option(0.01, "The smallest weight; 1 is plain fine-tuning.", least=0.0, most=1.0)

    name: ClassVar[str] = "talr"
    summary: ClassVar[str] = "unlikely response tokens weighted down"
    formula: ClassVar[str] = "sg(max(p[y]^(1/tau), floor)) · NLL"
    source: ClassVar[str] = "2509.20758"
    strength: ClassVar[str] = "tau"
    decides: ClassVar[frozenset[str]] = frozenset({RESPONSE_LOSS})

    def changes(self, config: SelfAugConfig) -> Changes:
        """The weighted NLL."""
        options = self.options(config)
        return Changes(response_term=TALR_TERM(options.tau, options.floor))
