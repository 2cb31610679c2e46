"""The row terms on dense logits, for autograd to differentiate.

This is the second oracle of the rows, for sizes that are slow as loops and for gradients with respect to weights: plain
tensors, PyTorch's `log_softmax` and autograd, and one matrix of logits. It is checked against `rows.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def logits_NV(  # noqa: N802
    hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, scale: float = 1.0, soft_cap: float | None = None
) -> Tensor:
    """Return c·tanh(s·(h Wᵀ + b)/c) for N rows."""
    z_NV = hidden_NH @ weight_VH.T
    if bias_V is not None:
        z_NV = z_NV + bias_V
    z_NV = z_NV * scale
    return z_NV if soft_cap is None else soft_cap * torch.tanh(z_NV / soft_cap)


def nll_N(z_NV: Tensor, label_N: Tensor) -> Tensor:  # noqa: N802
    return -z_NV.log_softmax(-1)[torch.arange(len(label_N)), label_N]


def alignment_N(direction: str, z_NV: Tensor, reference_NV: Tensor) -> Tensor:  # noqa: N802
    log_q, log_p = z_NV.log_softmax(-1), reference_NV.log_softmax(-1)
    if direction == "base_to_tuned":
        return _divergence_N(log_p, log_q)
    if direction == "tuned_to_base":
        return _divergence_N(log_q, log_p)
    if direction == "jsd":
        log_m = torch.logaddexp(log_p, log_q) - math.log(2.0)
        return 0.5 * _divergence_N(log_p, log_m) + 0.5 * _divergence_N(log_q, log_m)
    raise AssertionError(direction)


def _divergence_N(log_p: Tensor, log_q: Tensor) -> Tensor:  # noqa: N802
    return (log_p.exp() * (log_p - log_q)).sum(-1)
