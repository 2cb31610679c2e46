"""`talr`: weights down response tokens that are unlikely under the model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from selfaug.methods.base import RESPONSE_LOSS, Changes, Method
from selfaug.methods.options import option
from selfaug.objective.response_terms import TALR as TALR_TERM

if TYPE_CHECKING:
    from selfaug.training.config import SelfAugConfig

__all__ = ["TALR"]


class TALR(Method):
    """``loss = Σ max(p[y]^(1/τ), floor) · nll / n_response``; the weight has no gradient.

    Source: arXiv 2509.20758: weights exp(-nll / τ), τ the median NLL of the batch's response tokens, and a floor.
    Differences: the median is that of a micro-batch on its device, so with `tau=0` the gradient depends on how a step
    is split; weights are not normalised over the batch. A fixed τ is the paper's ablation: without a floor, τ = 1 is
    `dft`, and a large τ approaches plain fine-tuning.
    """

    @dataclass(frozen=True)
    class Options:
        """Options of `talr`."""

        tau: float = option(
            0.0, "Temperature in nats: a token of this NLL has weight 1/e; 0 is the median NLL of the batch.", least=0.0
        )
        floor: float = option(0.01, "Smallest weight; 1 is plain fine-tuning.", least=0.0, most=1.0)

    name: ClassVar[str] = "talr"
    summary: ClassVar[str] = "unlikely response tokens weighted down"
    formula: ClassVar[str] = "sg(max(p[y]^(1/tau), floor)) · NLL"
    source: ClassVar[str] = "2509.20758"
    differs: ClassVar[str] = (
        "the median is that of a micro-batch on its device; weights are not normalised over the batch"
    )
    strength: ClassVar[str] = "tau"
    decides: ClassVar[frozenset[str]] = frozenset({RESPONSE_LOSS})

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return the weighted NLL as the response loss."""
        options = self.options(config)
        if options.floor == 1:
            return Changes()
        if options.tau:
            return Changes(response_term=TALR_TERM(options.tau, options.floor))
        return Changes(reweigh=partial(_by_median, floor=options.floor))


def _by_median(nll_N: Tensor, floor: float) -> Tensor:
    median = nll_N.double().quantile(0.5).clamp(min=torch.finfo(torch.float32).tiny)
    return (-nll_N.double() / median).exp().clamp(min=floor)
