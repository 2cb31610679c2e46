"""Parameter terms: penalties on the trained weights, independent of the data.

A parameter term is a function of the model alone, and counts once an optimiser step, not once a micro-batch. There are
three, each of one method: :func:`l2_penalty` (`l2`), :func:`ewc_penalty` (`ewc`) and :func:`overlap_of_layers`
(`orthogonal`).

Shapes of a LoRA layer: A is R × I, B is O × R, its pretrained weight W is O × I. Its update is ΔW = s · B A with the
scale s of the adapter. F, O × I, is the diagonal Fisher information of W under the base (`selfaug/before/fisher.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from selfaug.common.errors import ConfigError
from selfaug.model.libraries import LoraPair, lora_pairs

__all__ = [
    "ParameterTerm", "absolute_overlap_of_layers", "ewc_penalty", "l2_penalty", "overlap", "overlap_of_layers",
    "squared_norm", "weighted_squared_norm",
]  # fmt: skip


@dataclass(frozen=True)
class ParameterTerm:
    """A penalty on the trained weights.

    Args:
        name: Name of the log entry.
        weight: Weight in the loss.
        value: Function of the causal LM inside all wrappers.
    """

    name: str
    weight: float
    value: Callable[[nn.Module], Tensor]


def squared_norm(A_RI: Tensor, B_OR: Tensor, scale: float) -> Tensor:
    """``‖ΔW‖² = ‖s B A‖² = s² tr((Bᵀ B) (A Aᵀ))``, by two R × R products instead of one of O × I."""
    return scale**2 * ((B_OR.T @ B_OR) * (A_RI @ A_RI.T)).sum()


def l2_penalty(model: nn.Module) -> Tensor:
    """``Σ_layers ‖ΔW‖²`` over all LoRA layers, in float32 (float64 for float64 adapters) even under autocast."""
    return torch.stack([_without_autocast(_squared_norm_of_layer, pair) for pair in _pairs(model)]).sum()


def _squared_norm_of_layer(pair: LoraPair) -> Tensor:
    return squared_norm(_at_least_float32(pair.A), _at_least_float32(pair.B), pair.scale)


def weighted_squared_norm(A_RI: Tensor, B_OR: Tensor, F_OI: Tensor, scale: float) -> Tensor:
    """``Σ_oi F_oi ΔW_oi² = s² Σ_oi F_oi (B A)_oi²``, differentiable with respect to A and B.

    Gradients are formed with the value, so that no O × I matrix of one layer is kept while the next is computed.
    """
    value: Tensor = _WeightedSquaredNorm.apply(A_RI, B_OR, F_OI, scale)  # type: ignore[no-untyped-call]
    return value


class _WeightedSquaredNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, A_RI: Tensor, B_OR: Tensor, F_OI: Tensor, scale: float) -> Tensor:
        update_OI = B_OR @ A_RI
        weighted_OI = update_OI * F_OI
        factor = 2 * scale**2
        ctx.save_for_backward(factor * (B_OR.T @ weighted_OI), factor * (weighted_OI @ A_RI.T))
        return scale**2 * (weighted_OI * update_OI).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        A_RI, B_OR = ctx.saved_tensors
        return gradients[0] * A_RI, gradients[0] * B_OR, None, None


def ewc_penalty(model: nn.Module) -> Tensor:
    """``Σ_layers Σ_oi F_oi ΔW_oi²``, with F from each layer's ``selfaug_fisher``; embeddings are left out."""
    values = [_without_autocast(_weighted_norm_of_layer, pair) for pair in _pairs(model) if pair.W is not None]
    return torch.stack(values).sum()


def _weighted_norm_of_layer(pair: LoraPair) -> Tensor:
    F_OI = getattr(pair.layer, "selfaug_fisher", None)
    assert isinstance(F_OI, Tensor), "the Fisher information is there before the first step"
    A_RI, B_OR = _at_least_float32(pair.A), _at_least_float32(pair.B)
    return weighted_squared_norm(A_RI, B_OR, F_OI.to(A_RI.device, A_RI.dtype), pair.scale)


def overlap(W_OI: Tensor, A_RI: Tensor) -> Tensor:
    """``I · ‖W Aᵀ‖² / (‖W‖² ‖A‖²)``, in [0, I]: how strongly W acts on the directions that A reads.

    It is 1 for an average direction and 0 where every row of A lies in the null space of W, and does not depend on the
    scale of A or W. For A = 0 it is 0.
    """
    tiny = torch.finfo(A_RI.dtype).tiny
    norms = W_OI.square().sum() * A_RI.square().sum()
    return W_OI.shape[1] * (A_RI @ W_OI.T).square().sum() / norms.clamp(min=tiny)


def absolute_overlap(W_OI: Tensor, A_RI: Tensor) -> Tensor:
    """``Σ_or |W Aᵀ|_or``; it falls as A shrinks."""
    return (A_RI @ W_OI.T).abs().sum()


def overlap_of_layers(model: nn.Module) -> Tensor:
    """Return the mean :func:`overlap` over all LoRA layers; embeddings are left out.

    Raises:
        ConfigError: If a pretrained weight is quantised.
    """
    return _overlaps(model, overlap).mean()


def absolute_overlap_of_layers(model: nn.Module) -> Tensor:
    """Return the sum of :func:`absolute_overlap` over all LoRA layers; embeddings are left out.

    Raises:
        ConfigError: If a pretrained weight is quantised.
    """
    return _overlaps(model, absolute_overlap).sum()


def _overlaps(model: nn.Module, of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    pairs = [pair for pair in _pairs(model) if pair.W is not None]
    return torch.stack([_without_autocast(partial(_overlap_of_layer, of=of), pair) for pair in pairs])


def _overlap_of_layer(pair: LoraPair, of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    assert pair.W is not None
    if not pair.W.is_floating_point():
        raise ConfigError(
            "the pretrained weights are quantised, and the overlap of the adapter with them needs their values.",
            "load the model without quantisation, or choose another method.",
        )
    A_RI = _at_least_float32(pair.A)
    return of(pair.W.detach().to(A_RI.dtype), A_RI)


def _without_autocast(value: Callable[[LoraPair], Tensor], pair: LoraPair) -> Tensor:
    with torch.autocast(pair.A.device.type, enabled=False):
        return value(pair)


def _at_least_float32(weight: Tensor) -> Tensor:
    return weight if weight.dtype == torch.float64 else weight.float()


def _pairs(model: nn.Module) -> list[LoraPair]:
    pairs = lora_pairs(model)
    assert pairs, "a method that acts on an adapter was given a model without one"
    return pairs
