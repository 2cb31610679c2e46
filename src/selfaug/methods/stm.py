"""`stm`: learn only those response tokens that the base finds plausible."""

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

    Source: arXiv 2501.14315, with a threshold of 2.5. We differ in: the divisor counts kept tokens of the whole
    optimiser step. A masked token is neither learnt nor taken for a part of the prompt.
    """

    @dataclass(frozen=True)
    class Options:
        """Of `stm`."""

        perplexity: float = option(2.5, "Response tokens above it under the base are not learnt.", least=1.0)

    name: ClassVar[str] = "stm"
    summary: ClassVar[str] = "response tokens that surprise the base are left out"
    formula: ClassVar[str] = "NLL on response tokens with exp(NLL_base) <= perplexity"
    source: ClassVar[str] = "2501.14315"
    needs: ClassVar[str] = "one pass of the base over the data"
    strength: ClassVar[str] = "perplexity"

    def changes(self, config: SelfAugConfig) -> Changes:
        """Weight 1 for a token that is kept, 0 for one that is not."""
        limit = self.options(config).perplexity
        most = math.log(limit) if limit < math.inf else math.inf
        return Changes(weigh=lambda samples: lambda nll_N: (nll_N <= most).to(nll_N.dtype))
