"""`flow`: weights each sample by how likely its response is under the base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from selfaug.methods.base import Changes, Method, Weigh
from selfaug.methods.options import option

if TYPE_CHECKING:
    from selfaug.training.config import SelfAugConfig

__all__ = ["FLOW"]


class FLOW(Method):
    """``loss = Σ_i w_i Σ_t nll / n_response``, ``w_i = exp(-l_i / τ) / c``; l_i is the base's mean NLL of a response.

    Source: arXiv 2502.02797. Difference: the weights are divided by their mean c over the response tokens of the data
    set, so that the learning rate keeps its meaning. By default τ is the median of the l_i.
    """

    @dataclass(frozen=True)
    class Options:
        """Options of `flow`."""

        flow_tau: float = option(0.0, "Temperature in nats; 0 takes the median loss, infinity is plain.", least=0.0)

    name: ClassVar[str] = "flow"
    summary: ClassVar[str] = "samples weighted by how easy the base finds them"
    formula: ClassVar[str] = "exp(-NLL_base of the sample / flow_tau) · NLL, weights of mean 1"
    source: ClassVar[str] = "2502.02797"
    differs: ClassVar[str] = "weights are divided by their mean over the data set's response tokens"
    needs: ClassVar[str] = "one pass of the base over the data"
    strength: ClassVar[str] = "flow_tau"

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return the weights, equal for all tokens of a sample."""
        return Changes(weigh=partial(_weights, tau=self.options(config).flow_tau))


def _weights(samples: Sequence[Tensor], tau: float) -> Weigh:
    losses = torch.stack([nll_N.double().mean() for nll_N in samples])
    counts = torch.tensor([len(nll_N) for nll_N in samples], dtype=torch.float64)
    tau = tau or losses.quantile(0.5).item() or math.inf
    mean = ((-losses / tau).exp() * counts).sum() / counts.sum()
    return lambda nll_N: ((-nll_N.double().mean() / tau).exp() / mean).to(nll_N.dtype).expand(len(nll_N))
