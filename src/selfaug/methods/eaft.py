"""`eaft`: weights each response token by the entropy of the model's most likely tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from selfaug.methods.base import RESPONSE_LOSS, Changes, Method
from selfaug.methods.options import option
from selfaug.objective.response_terms import EAFT as EAFT_TERM

if TYPE_CHECKING:
    from selfaug.training.config import SelfAugConfig

__all__ = ["EAFT"]


class EAFT(Method):
    """``loss = Σ (H_K / ln K)^gate_power · nll / n_response``.

    H_K is the entropy of the K most likely tokens, renormalised. The weight lies in [0, 1], is 1 where those K are
    equally likely, and has no gradient. Little is learnt from tokens about which the model is certain, right or wrong.

    Source: arXiv 2601.02151, with K = 20. Difference: the entropy is divided by ln K (in the published code by 3.0).
    """

    @dataclass(frozen=True)
    class Options:
        """Options of `eaft`."""

        top: int = option(20, "Number of the most likely tokens in the entropy.", least=2)
        gate_power: float = option(1.0, "Exponent of the gate; 0 is plain fine-tuning.", least=0.0)

    name: ClassVar[str] = "eaft"
    summary: ClassVar[str] = "each response token gated by the entropy of the 20 most likely ones"
    formula: ClassVar[str] = "sg(H_top / ln top)^gate_power · NLL"
    source: ClassVar[str] = "2601.02151"
    differs: ClassVar[str] = "the entropy is divided by ln K, in the published code by 3"
    strength: ClassVar[str] = "gate_power"
    decides: ClassVar[frozenset[str]] = frozenset({RESPONSE_LOSS})

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return the weighted NLL as the response loss."""
        options = self.options(config)
        return Changes(response_term=EAFT_TERM(options.top, options.gate_power))
