"""The language-model head: logits of hidden states, and the gradient back to the projection.

Shapes: N rows, V vocabulary, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name for it
from torch import Tensor

__all__ = ["LMHead"]


@dataclass(frozen=True)
class LMHead:
    """``logits = cap(scale · (hidden @ weight.T + bias))`` with ``cap(z) = c · tanh(z / c)``, or ``z`` without a cap.

    Args:
        weight_VH: Output projection; the sweep forms its gradient only where it requires one.
        bias_V: Bias, added before the scale; ``None`` for none.
        scale: Factor on the logits (Cohere's ``logit_scale``, the inverse of Granite's ``logits_scaling``).
        soft_cap: Cap c > 0 (Gemma 2's ``final_logit_softcapping``); ``None`` for no cap.
    """

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None

    @property
    def requires_grad(self) -> bool:
        """Whether the projection is trained."""
        return self.weight_VH.requires_grad or (self.bias_V is not None and self.bias_V.requires_grad)

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Return the logits (N × V) in the dtype of ``hidden_NH``; differentiable."""
        return self.shape(F.linear(hidden_NH, self.weight_VH, self.bias_V))

    def shape(self, projected_NV: Tensor) -> Tensor:
        """Apply scale and cap to projected rows; differentiable, and the same tensor where there is neither."""
        logits_NV = projected_NV if self.scale == 1.0 else projected_NV * self.scale
        if self.soft_cap is None:
            return logits_NV
        return self.soft_cap * torch.tanh(logits_NV / self.soft_cap)

    def unshape_(self, gradient_NV: Tensor, logits_NV: Tensor) -> Tensor:
        """``d projected = d logits · scale · (1 - (logits / c)²)``, in place of ``gradient_NV``.

        Turn the gradient with respect to the logits into that with respect to the projected rows.
        """
        if self.soft_cap is not None:
            gradient_NV.mul_(1 - (logits_NV / self.soft_cap).square_())
        return gradient_NV if self.scale == 1.0 else gradient_NV.mul_(self.scale)

    def to(self, dtype: torch.dtype) -> LMHead:
        """Return the same head in ``dtype``, detached."""
        bias_V = None if self.bias_V is None else self.bias_V.detach().to(dtype)
        return LMHead(self.weight_VH.detach().to(dtype), bias_V, self.scale, self.soft_cap)
