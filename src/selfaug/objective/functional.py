"""The alignment as one function of tensors, for training loops that use nothing else of this package.

Shapes: B rows and T tokens of a batch, N aligned positions, H hidden, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from selfaug.objective.head import LMHead
from selfaug.objective.rows import Rows, WeightedTerm
from selfaug.objective.sweep import sweep
from selfaug.objective.terms import ALIGNMENT_TERMS

__all__ = ["prompt_kl"]


def prompt_kl(
    hidden_BTH: Tensor,
    base_hidden_BTH: Tensor,
    head_weight_VH: Tensor,
    aligned_BT: Tensor,
    *,
    head_bias_V: Tensor | None = None,
    base_head_weight_VH: Tensor | None = None,
    base_head_bias_V: Tensor | None = None,
    logit_scale: float = 1.0,
    logit_soft_cap: float | None = None,
    direction: str = "base_to_tuned",
    reduction: str = "mean",
) -> Tensor:
    """``mean_n KL(softmax(base_head(base_hidden_n)) ‖ softmax(head(hidden_n)))`` over the aligned positions, in nats.

    Equals ``F.kl_div(log_softmax(head(hidden)), softmax(base_head(base_hidden)), reduction="sum") / N`` without ever
    holding N × V logits: rows are taken in blocks, and their gradient is formed in the same pass.

    Args:
        hidden_BTH: Final hidden states of the tuned model, B × T × H (or any shape that ends with H); gradients flow
            here.
        base_hidden_BTH: Final hidden states of the base at the same tokens, of the same shape; constant.
        head_weight_VH: Output projection of the tuned model; it gets a gradient where it requires one.
        aligned_BT: Mask of the compared positions, bool, of the shape of the hidden states without H. Usually position
            t where tokens t and t + 1 are both prompt tokens of one document: the logits of t predict t + 1.
        head_bias_V: Bias of the tuned model's projection; ``None`` for none.
        base_head_weight_VH: Output projection of the base; ``None`` where the head is frozen, so that both share it.
        base_head_bias_V: Bias of the base's projection; ``None`` for none.
        logit_scale: Factor that the model applies to its logits.
        logit_soft_cap: Cap c of ``c · tanh(logits / c)``; ``None`` for no cap.
        direction: Direction of the KL: ``base_to_tuned``, ``tuned_to_base`` or ``jsd``.
        reduction: ``mean`` over the aligned positions, or ``sum``. Under gradient accumulation and on several ranks,
            use ``sum`` and divide it by the count of the whole step.

    Returns:
        A float32 scalar (float64 for a float64 head), >= 0 up to rounding. Without an aligned position it is 0 and
        still has a graph.

    Raises:
        ValueError: If shapes do not fit, or ``direction`` or ``reduction`` is unknown.
    """
    if hidden_BTH.shape != base_hidden_BTH.shape or hidden_BTH.shape[:-1] != aligned_BT.shape:
        raise ValueError(
            f"hidden states {tuple(hidden_BTH.shape)}, those of the base {tuple(base_hidden_BTH.shape)} and aligned "
            f"positions {tuple(aligned_BT.shape)} do not fit: the first two must be equal, and the third without H"
        )
    if aligned_BT.dtype != torch.bool:
        raise ValueError(f"aligned positions are {aligned_BT.dtype}, not bool: labels are not a mask")
    if direction not in ALIGNMENT_TERMS:
        raise ValueError(f"direction={direction!r} is not one of {', '.join(ALIGNMENT_TERMS)}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction={reduction!r} is not one of mean, sum")
    size = hidden_BTH.shape[-1]
    index_N = aligned_BT.reshape(-1).nonzero().squeeze(-1)
    base_NH = base_hidden_BTH.detach().reshape(-1, size)[index_N]
    base_head = None
    if base_head_weight_VH is not None:
        base_head = LMHead(base_head_weight_VH, base_head_bias_V, logit_scale, logit_soft_cap)
    weight = 1.0 / max(index_N.numel(), 1) if reduction == "mean" else 1.0
    rows = Rows(index_N, (WeightedTerm(ALIGNMENT_TERMS[direction], weight),), reference_NH=base_NH)
    head = LMHead(head_weight_VH, head_bias_V, logit_scale, logit_soft_cap)
    return sweep(hidden_BTH.reshape(-1, size), head, [rows], base_head).loss
