"""What does a row of logits cost under the rivals that change how the response is learnt?

Row terms as in ``terms.py``: plain arithmetic, no state, nothing about batches. Those that take the NLL's place weight
it by a number in [0, 1] that is held constant, so the gradient is the NLL's times that number. p is the tuned
distribution, q the reference's, y the label.

Shapes: N rows, V vocabulary. Values in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from selfaug.objective.terms import NLL, BaseToTuned, RowResult

__all__ = ["DFT", "EAFT", "KL_RESPONSE", "TALR", "PromptNLL", "WeightedNLL", "WithoutGold"]

KL_RESPONSE = BaseToTuned(name="kl_response")
"""``KL(q ‖ p)`` under a name of its own, for response tokens."""


@dataclass(frozen=True)
class PromptNLL(NLL):
    """``-log p[y]`` of a prompt token y; its statistics would count among the response's, so there are none."""

    name: str = "prompt_nll"

    def __call__(  # noqa: D102
        self, logits_NV: Tensor, reference_NV: Tensor | None, label_N: Tensor | None, *, gradient: bool
    ) -> RowResult:
        found = NLL()(logits_NV, reference_NV, label_N, gradient=gradient)
        return RowResult(found.value_N, found.gradient_NV)


class WeightedNLL:
    """``w · -log p[y]`` with a weight w in [0, 1] made of the row itself and held constant; gradient ``w (p - 1_y)``.

    Statistics: those of the NLL, and ``nll`` itself.
    """

    needs_reference: bool = False
    needs_label: bool = True

    @property
    def name(self) -> str:
        """Under which the sum is logged."""
        raise NotImplementedError

    def weights(self, logits_NV: Tensor, nll_N: Tensor) -> Tensor:
        """The weight of each row (N); never differentiated."""
        raise NotImplementedError

    def __call__(  # noqa: D102
        self, logits_NV: Tensor, reference_NV: Tensor | None, label_N: Tensor | None, *, gradient: bool
    ) -> RowResult:
        found = NLL()(logits_NV, reference_NV, label_N, gradient=gradient)
        weight_N = self.weights(logits_NV, found.value_N)
        slope_NV = None if found.gradient_NV is None else found.gradient_NV.mul_(weight_N.unsqueeze(-1))
        return RowResult(weight_N * found.value_N, slope_NV, {"nll": found.value_N, **found.statistics})

    def definition(self, logits_NV: Tensor, reference_NV: Tensor | None, label_N: Tensor | None) -> Tensor:  # noqa: D102
        nll_N = NLL().definition(logits_NV, reference_NV, label_N)
        with torch.no_grad():
            weight_N = self.weights(logits_NV, nll_N)
        return weight_N * nll_N


@dataclass(frozen=True)
class DFT(WeightedNLL):
    """``p[y]^power · -log p[y]``; the published method has power 1, the NLL power 0."""

    power: float = 1.0

    @property
    def name(self) -> str:  # noqa: D102
        return "dft"

    def weights(self, logits_NV: Tensor, nll_N: Tensor) -> Tensor:  # noqa: D102
        return (-self.power * nll_N).exp()


@dataclass(frozen=True)
class EAFT(WeightedNLL):
    """``(H_K / ln K)^power · -log p[y]``: H_K is the entropy of the K largest entries of p, renormalised.

    The gate is 1 where those K are equally likely and 0 where one has all the mass. K is at most V.
    """

    top: int = 20
    power: float = 1.0

    @property
    def name(self) -> str:  # noqa: D102
        return "eaft"

    def weights(self, logits_NV: Tensor, nll_N: Tensor) -> Tensor:  # noqa: D102
        count = min(self.top, logits_NV.shape[-1])
        log_p_NK = torch.log_softmax(logits_NV.topk(count, dim=-1).values, dim=-1)
        entropy_N = torch.special.entr(log_p_NK.exp()).sum(dim=-1)
        gate_N: Tensor = (entropy_N / math.log(count)).clamp(0.0, 1.0)
        return gate_N.pow(self.power)


@dataclass(frozen=True)
class TALR(WeightedNLL):
    """``max(p[y]^(1/tau), floor) · -log p[y]``."""

    tau: float = 1.0
    floor: float = 0.01

    @property
    def name(self) -> str:  # noqa: D102
        return "talr"

    def weights(self, logits_NV: Tensor, nll_N: Tensor) -> Tensor:  # noqa: D102
        return (-nll_N / self.tau).exp().clamp(min=self.floor)


@dataclass(frozen=True)
class WithoutGold:
    """``KL(q' ‖ p')``: p' and q' are p and q without the entry y, renormalised; gradient ``p' - q'``, and 0 at y.

    Moving mass between the label and the rest costs nothing; only the shape of the rest is held.
    """

    name: str = "tmkl"
    needs_reference: bool = True
    needs_label: bool = True

    def __call__(  # noqa: D102
        self, logits_NV: Tensor, reference_NV: Tensor | None, label_N: Tensor | None, *, gradient: bool
    ) -> RowResult:
        assert reference_NV is not None
        assert label_N is not None
        return BaseToTuned()(_without(logits_NV, label_N), _without(reference_NV, label_N), None, gradient=gradient)

    def definition(self, logits_NV: Tensor, reference_NV: Tensor | None, label_N: Tensor | None) -> Tensor:  # noqa: D102
        assert reference_NV is not None
        assert label_N is not None
        return BaseToTuned().definition(_without(logits_NV, label_N), _without(reference_NV, label_N), None)


def _without(logits_NV: Tensor, label_N: Tensor) -> Tensor:
    return logits_NV.scatter(-1, label_N.unsqueeze(-1), -math.inf)
