"""`dft`: weights each response token by its probability under the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from selfaug.methods.base import RESPONSE_LOSS, Changes, Method
from selfaug.methods.options import option
from selfaug.objective.response_terms import DFT as DFT_TERM

if TYPE_CHECKING:
    from selfaug.training.config import SelfAugConfig

__all__ = ["DFT"]


class DFT(Method):
    """``loss = Σ p[y]^power · nll / n_response``, p[y] the token's tuned probability without gradient.

    Source: arXiv 2508.05629, with ``power`` 1. Differences: the exponent is an option, so that there is a curve between
    plain fine-tuning (0) and the method; the divisor counts tokens of the whole optimiser step.
    """

    @dataclass(frozen=True)
    class Options:
        """Options of `dft`."""

        power: float = option(1.0, "Exponent of the token's probability; 0 is plain fine-tuning.", least=0.0)

    name: ClassVar[str] = "dft"
    summary: ClassVar[str] = "each response token weighted by its own probability"
    formula: ClassVar[str] = "sg(p[y])^power · NLL"
    source: ClassVar[str] = "2508.05629"
    differs: ClassVar[str] = "the exponent is an option; divisor of the whole optimiser step"
    strength: ClassVar[str] = "power"
    decides: ClassVar[frozenset[str]] = frozenset({RESPONSE_LOSS})

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return the weighted NLL as the response loss."""
        return Changes(response_term=DFT_TERM(self.options(config).power))
