"""Row terms of the rival methods that change how the response is learnt.

They are row terms as in ``terms.py``. Those that replace the NLL weight it by a number in [0, 1] without gradient, so
their gradient is the NLL's times that number. p is the tuned distribution, q the reference's, y the label.

Shapes: N rows, V vocabulary. Values are in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from selfaug.objective.terms import NLL, BaseToTuned, RowResult

__all__ = ["DFT", "EAFT", "KL_RESPONSE", "TALR", "Anchored", "PartNLL", "PromptNLL", "WeightedNLL", "WithoutGold"]

KL_RESPONSE = BaseToTuned(name="kl_response")
"""``KL(q ‖ p)`` on response tokens, logged under its own name."""


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
    """``w · -log p[y]``, w in [0, 1] a function of the row without gradient; gradient ``w (p - 1_y)``.

    Statistics: those of the NLL, and ``nll``.
    """

    needs_reference: bool = False
    needs_label: bool = True

    @property
    def name(self) -> str:
        """Name under which the sum is logged."""
        raise NotImplementedError

    def weights(self, logits_NV: Tensor, nll_N: Tensor) -> Tensor:
        """Return the weight of each row (N); it is not differentiated."""
        raise NotImplementedError

    def __call__(  # noqa: D102
        self, logits_NV: Tensor, reference_NV: Tensor | None, label_N: Tensor | None, *, gradient: bool
    ) -> RowResult:
        nll = NLL()(logits_NV, reference_NV, label_N, gradient=gradient)
        weight_N = self.weights(logits_NV, nll.value_N)
        gradient_NV = None if nll.gradient_NV is None else nll.gradient_NV.mul_(weight_N.unsqueeze(-1))
        return RowResult(weight_N * nll.value_N, gradient_NV, {"nll": nll.value_N, **nll.statistics})

    def definition(self, logits_NV: Tensor, reference_NV: Tensor | None, label_N: Tensor | None) -> Tensor:  # noqa: D102
        nll_N = NLL().definition(logits_NV, reference_NV, label_N)
        with torch.no_grad():
            weight_N = self.weights(logits_NV, nll_N)
        return weight_N * nll_N


@dataclass(frozen=True)
class DFT(WeightedNLL):
    """``p[y]^power · -log p[y]``; power 1 is the published method, power 0 the NLL."""

    power: float = 1.0

    @property
    def name(self) -> str:  # noqa: D102
        return "dft"

    def weights(self, logits_NV: Tensor, nll_N: Tensor) -> Tensor:  # noqa: D102
        return (-self.power * nll_N).exp()


@dataclass(frozen=True)
class EAFT(WeightedNLL):
    """``(H_K / ln K)^power · -log p[y]``, H_K the entropy of the K largest entries of p, renormalised.

    The weight is 1 where those K are equally likely and 0 where one has all the mass. K is at most V.
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
        evenness_N: Tensor = (entropy_N / math.log(count)).clamp(0.0, 1.0)
        return evenness_N.pow(self.power)


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
class PartNLL(WeightedNLL):
    """``part · -log p[y]``."""

    part: float = 0.5

    @property
    def name(self) -> str:  # noqa: D102
        return "part_nll"

    def weights(self, logits_NV: Tensor, nll_N: Tensor) -> Tensor:  # noqa: D102
        return torch.full_like(nll_N, self.part)


@dataclass(frozen=True)
class Anchored:
    """``KL(a ‖ p)``, a ∝ sg(p)^(1 - pull) · q^pull, mixed in the logits and without gradient; gradient ``p - a``."""

    pull: float = 0.5
    name: str = "anchored"
    needs_reference: bool = True
    needs_label: bool = False

    def __call__(  # noqa: D102
        self, logits_NV: Tensor, reference_NV: Tensor | None, label_N: Tensor | None, *, gradient: bool
    ) -> RowResult:
        assert reference_NV is not None
        return BaseToTuned()(logits_NV, self._mixture(logits_NV, reference_NV), None, gradient=gradient)

    def definition(self, logits_NV: Tensor, reference_NV: Tensor | None, label_N: Tensor | None) -> Tensor:  # noqa: D102
        assert reference_NV is not None
        return BaseToTuned().definition(logits_NV, self._mixture(logits_NV.detach(), reference_NV), None)

    def _mixture(self, logits_NV: Tensor, reference_NV: Tensor) -> Tensor:
        # Not 0 · -inf, which is no number.
        return reference_NV if self.pull == 1 else (1 - self.pull) * logits_NV + self.pull * reference_NV


@dataclass(frozen=True)
class WithoutGold:
    """``KL(q' ‖ p')``, p' and q' being p and q without entry y, renormalised; gradient ``p' - q'``, and 0 at y.

    Moving mass between the label and the rest costs nothing; only the distribution over the rest is regularised.
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
