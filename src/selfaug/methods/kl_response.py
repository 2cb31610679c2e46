"""`kl-response`: adds the KL to the base model on the response tokens themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from selfaug.methods.base import Changes, Method
from selfaug.methods.options import option
from selfaug.objective.response_terms import KL_RESPONSE
from selfaug.step.forward import TermOn

if TYPE_CHECKING:
    from selfaug.training.config import SelfAugConfig

__all__ = ["KLResponse"]

RESPONSE_KL = "the KL on response tokens"


class KLResponse(Method):
    """``loss = Σ nll / n_response + β · Σ_drawn KL(base ‖ tuned) / (align_fraction · n_response)``, on response tokens.

    This is the control closest to SelfAug: the same divergence on the other side of the boundary. The reference pass
    sees a drawn sequence up to its last response position; `align_fraction` draws sequences as for prompts.
    """

    @dataclass(frozen=True)
    class Options:
        """Options of `kl-response`."""

        beta: float = option(0.5, "Weight of the KL on response tokens.", least=0.0)

    name: ClassVar[str] = "kl-response"
    summary: ClassVar[str] = "KL(base ‖ tuned) on the response's tokens"
    formula: ClassVar[str] = "NLL + beta·KL(base ‖ tuned) on response tokens"
    source: ClassVar[str] = "control; see also 2509.04259"
    strength: ClassVar[str] = "beta"
    decides: ClassVar[frozenset[str]] = frozenset({RESPONSE_KL})

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return the KL, if β is above 0."""
        beta = self.options(config).beta
        return Changes(added_terms=(TermOn(KL_RESPONSE, "compared", beta),) if beta else ())
