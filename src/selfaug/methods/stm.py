"""`stm`: masks response tokens that are unlikely under the base."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from selfaug.methods.base import Changes, Method
from selfaug.methods.options import option

if TYPE_CHECKING:
    from selfaug.training.config import SelfAugConfig

__all__ = ["STM"]


class STM(Method):
    """``loss = Σ_kept nll / n_kept``: a token is kept where ``exp(nll_base) <= perplexity``.

    A masked token is neither trained nor counted as prompt.

    Source: arXiv 2501.14315, with a threshold of 2.5. Difference: the divisor counts kept tokens of the whole optimiser
    step.
    """

    @dataclass(frozen=True)
    class Options:
        """Options of `stm`."""

        perplexity: float = option(2.5, "Largest perplexity under the base of trained response tokens.", least=1.0)

    name: ClassVar[str] = "stm"
    summary: ClassVar[str] = "response tokens that surprise the base are left out"
    formula: ClassVar[str] = "NLL on response tokens with exp(NLL_base) <= perplexity"
    source: ClassVar[str] = "2501.14315"
    differs: ClassVar[str] = "the divisor counts kept tokens of the whole optimiser step"
    needs: ClassVar[str] = "one pass of the base over the data"
    strength: ClassVar[str] = "perplexity"

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return the weights: 1 for kept tokens, 0 for masked ones."""
        limit = self.options(config).perplexity
        most = math.log(limit) if limit < math.inf else math.inf
        return Changes(weigh=lambda samples: lambda nll_N: (nll_N <= most).to(nll_N.dtype))
