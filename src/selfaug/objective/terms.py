"""Row terms of the loss: NLL and alignment, each with its value and its gradient for a row of logits.

A *row term* maps a block of tuned logits, with reference logits or labels where it needs them, to one value for each
row and its gradient with respect to the tuned logits. Terms are plain arithmetic on float32 or float64 blocks. They
have no autograd, no state, and know nothing of batches, weights or divisors, so each can be checked against loops and
calculus.

Shapes: N rows, V vocabulary. All values are in nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name for it
from torch import Tensor

__all__ = ["ALIGNMENT_TERMS", "NLL", "BaseToTuned", "JensenShannon", "RowResult", "RowTerm", "TunedToBase"]


@dataclass(frozen=True)
class RowResult:
    """The result of a row term.

    Args:
        value_N: Value of each row.
        gradient_NV: Gradient of each value with respect to its logits; ``None`` if it was not requested.
        statistics: Further numbers for each row (N) by name, detached.
    """

    value_N: Tensor
    gradient_NV: Tensor | None
    statistics: Mapping[str, Tensor] = field(default_factory=dict)


class RowTerm(Protocol):
    """A function of a row of logits; its sum is logged under ``name``."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def needs_reference(self) -> bool: ...  # noqa: D102

    @property
    def needs_label(self) -> bool: ...  # noqa: D102

    def __call__(
        self, logits_NV: Tensor, reference_NV: Tensor | None, label_N: Tensor | None, *, gradient: bool
    ) -> RowResult:
        """Return values, gradients (if ``gradient``) and statistics; the inputs are not changed."""
        ...

    def definition(self, logits_NV: Tensor, reference_NV: Tensor | None, label_N: Tensor | None) -> Tensor:
        """Return the values (N) by the textbook formula, for autograd to differentiate."""
        ...


def _log_softmax(logits_NV: Tensor) -> Tensor:
    # A masked entry (-inf) becomes a very small finite log-probability, since 0 · (-inf - -inf) would be NaN.
    log_p_NV = torch.log_softmax(logits_NV, dim=-1)
    least = torch.finfo(log_p_NV.dtype).min / 4
    return log_p_NV.clamp(min=least) if log_p_NV.requires_grad else log_p_NV.clamp_(min=least)


def _log_mean(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    # log ½(p + q); unlike logaddexp(p, q) - log 2, this is exactly log p where p equals q.
    return torch.maximum(log_p_NV, log_q_NV) + torch.log1p(0.5 * torch.expm1(-(log_p_NV - log_q_NV).abs()))


def _kl(log_from_NV: Tensor, log_to_NV: Tensor) -> Tensor:
    return F.kl_div(log_to_NV, log_from_NV, reduction="none", log_target=True).sum(dim=-1)


@dataclass(frozen=True)
class NLL:
    """``-log softmax(logits)[label]``; gradient ``softmax(logits) - onehot(label)``.

    Statistics: ``entropy`` of the distribution (nats) and ``correct`` (1 where the label is the most likely token).
    """

    name: str = "nll"
    needs_reference: bool = False
    needs_label: bool = True

    def __call__(  # noqa: D102
        self, logits_NV: Tensor, reference_NV: Tensor | None, label_N: Tensor | None, *, gradient: bool
    ) -> RowResult:
        assert label_N is not None
        label_N1 = label_N.unsqueeze(-1)
        log_p_NV = _log_softmax(logits_NV)
        value_N = -log_p_NV.gather(-1, label_N1).squeeze(-1)
        p_NV = log_p_NV.exp()
        statistics = {
            "entropy": -torch.linalg.vecdot(p_NV, log_p_NV),
            "correct": (logits_NV.argmax(dim=-1) == label_N).to(value_N.dtype),
        }
        if not gradient:
            return RowResult(value_N, None, statistics)
        p_NV.scatter_add_(-1, label_N1, p_NV.new_full((1, 1), -1.0).expand_as(label_N1))
        return RowResult(value_N, p_NV, statistics)

    def definition(self, logits_NV: Tensor, reference_NV: Tensor | None, label_N: Tensor | None) -> Tensor:  # noqa: D102
        assert label_N is not None
        return F.nll_loss(_log_softmax(logits_NV), label_N, reduction="none")


@dataclass(frozen=True)
class BaseToTuned:
    """``KL(q ‖ p) = Σ q (log q - log p)``, q the reference and p the tuned distribution; gradient ``p - q``.

    This is the direction of the released SelfAug code.
    """

    name: str = "alignment"
    needs_reference: bool = True
    needs_label: bool = False

    def __call__(  # noqa: D102
        self, logits_NV: Tensor, reference_NV: Tensor | None, label_N: Tensor | None, *, gradient: bool
    ) -> RowResult:
        assert reference_NV is not None
        log_p_NV, log_q_NV = _log_softmax(logits_NV), _log_softmax(reference_NV)
        q_NV = log_q_NV.exp()
        value_N = torch.linalg.vecdot(q_NV, log_q_NV.sub_(log_p_NV))
        return RowResult(value_N, log_p_NV.exp_().sub_(q_NV) if gradient else None)

    def definition(self, logits_NV: Tensor, reference_NV: Tensor | None, label_N: Tensor | None) -> Tensor:  # noqa: D102
        assert reference_NV is not None
        return _kl(_log_softmax(reference_NV), _log_softmax(logits_NV))


@dataclass(frozen=True)
class TunedToBase:
    """``KL(p ‖ q) = Σ p (log p - log q)``; gradient ``p (log p - log q - KL)``.

    This is the formula of the SelfAug paper.
    """

    name: str = "alignment"
    needs_reference: bool = True
    needs_label: bool = False

    def __call__(  # noqa: D102
        self, logits_NV: Tensor, reference_NV: Tensor | None, label_N: Tensor | None, *, gradient: bool
    ) -> RowResult:
        assert reference_NV is not None
        log_p_NV, log_q_NV = _log_softmax(logits_NV), _log_softmax(reference_NV)
        p_NV = log_p_NV.exp()
        difference_NV = log_p_NV.sub_(log_q_NV)
        value_N = torch.linalg.vecdot(p_NV, difference_NV)
        return RowResult(value_N, difference_NV.sub_(value_N.unsqueeze(-1)).mul_(p_NV) if gradient else None)

    def definition(self, logits_NV: Tensor, reference_NV: Tensor | None, label_N: Tensor | None) -> Tensor:  # noqa: D102
        assert reference_NV is not None
        return _kl(_log_softmax(logits_NV), _log_softmax(reference_NV))


@dataclass(frozen=True)
class JensenShannon:
    """``½ KL(p ‖ m) + ½ KL(q ‖ m)``, m = ½ (p + q), in [0, ln 2]; gradient ``½ p (log p - log m - KL(p ‖ m))``."""

    name: str = "alignment"
    needs_reference: bool = True
    needs_label: bool = False

    def __call__(  # noqa: D102
        self, logits_NV: Tensor, reference_NV: Tensor | None, label_N: Tensor | None, *, gradient: bool
    ) -> RowResult:
        assert reference_NV is not None
        log_p_NV, log_q_NV = _log_softmax(logits_NV), _log_softmax(reference_NV)
        p_NV, q_NV = log_p_NV.exp(), log_q_NV.exp()
        log_m_NV = _log_mean(log_p_NV, log_q_NV)
        from_p_NV = log_p_NV.sub_(log_m_NV)
        from_p_N = torch.linalg.vecdot(p_NV, from_p_NV)
        value_N = 0.5 * (from_p_N + torch.linalg.vecdot(q_NV, log_q_NV.sub_(log_m_NV)))
        return RowResult(value_N, from_p_NV.sub_(from_p_N.unsqueeze(-1)).mul_(p_NV).mul_(0.5) if gradient else None)

    def definition(self, logits_NV: Tensor, reference_NV: Tensor | None, label_N: Tensor | None) -> Tensor:  # noqa: D102
        assert reference_NV is not None
        log_p_NV, log_q_NV = _log_softmax(logits_NV), _log_softmax(reference_NV)
        log_m_NV = _log_mean(log_p_NV, log_q_NV)
        return 0.5 * (_kl(log_p_NV, log_m_NV) + _kl(log_q_NV, log_m_NV))


ALIGNMENT_TERMS: Mapping[str, RowTerm] = {
    "base_to_tuned": BaseToTuned(),
    "tuned_to_base": TunedToBase(),
    "jsd": JensenShannon(),
}
