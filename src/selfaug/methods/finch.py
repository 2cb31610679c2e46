"""`finch`: lowers the learning rate of steps with a high loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from selfaug.methods.base import Changes, Method
from selfaug.methods.options import option
from selfaug.methods.requests import Rate

if TYPE_CHECKING:
    from selfaug.training.config import SelfAugConfig

__all__ = ["FINCH"]

_LEAST_NLL = 1e-8


class FINCH(Method):
    """``learning_rate · min(L̄^(-finch_power / 2), finch_most)``; the loss is that of plain fine-tuning.

    L̄ is the exponential average of the steps' mean NLL of response tokens (nats), 0.9 of it from earlier steps. A
    step's forgetting is bounded by learning rate times √loss, so the published power, 1, bounds each step's alike. The
    NLL is that of the whole optimiser step, over micro-batches and ranks; other terms do not enter it.

    Source: arXiv 2605.20005, known by a description alone: ``η = κ / √(L̄ + ε)``, smoothing 0.9, a largest rate of
    5e-5. Differences: the factor multiplies the run's own schedule; the largest factor is ours.
    """

    @dataclass(frozen=True)
    class Options:
        """Options of `finch`."""

        finch_power: float = option(1.0, "Power of 1/√loss; 0 is plain fine-tuning.", least=0.0)
        finch_most: float = option(5.0, "Largest factor on the learning rate.", above=0.0)
        finch_smoothing: float = option(0.9, "Weight of earlier steps in the average loss.", least=0.0, most=0.999)

    name: ClassVar[str] = "finch"
    summary: ClassVar[str] = "a smaller learning rate for steps with a higher loss"
    formula: ClassVar[str] = "NLL, learning_rate·min(average NLL^(-finch_power/2), finch_most)"
    source: ClassVar[str] = "2605.20005"
    differs: ClassVar[str] = (
        "known by a description alone; the factor multiplies the run's schedule; the largest factor is ours"
    )
    strength: ClassVar[str] = "finch_power"

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return the factor by the loss, with a power above 0."""
        o = self.options(config)
        if not o.finch_power:
            return Changes()
        return Changes(rate=Rate(partial(_factor, power=o.finch_power, most=o.finch_most), o.finch_smoothing))


def _factor(nll: float, power: float, most: float) -> float:
    return min(math.pow(max(nll, _LEAST_NLL), -power / 2), most)
