"""The objective in row blocks: one pass forms the value and the hidden-state gradient, and full logits never exist.

A block of rows is projected (tuned, and reference where a term needs it), its terms return value and gradient with
respect to the logits, and the gradient is projected back at once. Aligned rows take 3 products of N·V·H with a frozen
head and 4 with a trained one; autograd over stored logits or a recomputing kernel takes 5. The backward pass only
scales the stored gradient.

Shapes: T hidden states (flattened), N rows of a group, n rows of a block, V vocabulary, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from selfaug.objective.block_terms import ELEMENTWISE, block_terms, torch_terms_
from selfaug.objective.blocks import blocks, compute_dtype, default_block_bytes, heads_in, wide_dtype
from selfaug.objective.head import LMHead
from selfaug.objective.rows import Objective, Rows, check_rows

__all__ = ["default_block_bytes", "sweep"]


def sweep(
    hidden_TH: Tensor,
    head: LMHead,
    groups: Sequence[Rows],
    reference_head: LMHead | None = None,
    *,
    block_bytes: int | None = None,
    elementwise: str | None = None,
) -> Objective:
    """``Σ_groups Σ_terms Σ_n weight · term(head(hidden_n), reference_head(reference_n), label_n)`` in row blocks.

    Equals :func:`selfaug.objective.plain.plain` to rounding. Products run in the autocast dtype where autocast is on,
    else in the head's dtype; elementwise work on logits runs in float32 (float64 for float64 heads).

    Args:
        hidden_TH: Final hidden states of the tuned model; gradients flow here.
        head: Projection of the tuned model; its weight and bias get gradients where they require them.
        groups: Groups of rows with their terms; no row is in two groups.
        reference_head: Projection of the base; ``None`` where both models share one.
        block_bytes: Bound in bytes on memory beside inputs and gradients; ``None`` for the device's default. A block
            has at least one row.
        elementwise: Backend of the work on logits: ``kernels`` (Triton, on a GPU, for terms that have a kernel) or
            ``torch``; ``None`` for the kernels where they can run. Both agree to rounding.

    Returns:
        The loss, float32 (float64 for float64 heads), and the detached sums by name. Without rows the loss is 0 and
        still has a graph, so that a rank without rows takes part in the backward collectives.

    Raises:
        ValueError: If shapes do not fit, a term lacks its labels or reference, or ``elementwise`` is unknown.
        ConfigError: If kernels are requested and cannot run here.
    """
    groups = tuple(groups)
    check_rows(hidden_TH, head, groups)
    if elementwise not in (None, *ELEMENTWISE):
        raise ValueError(f"elementwise={elementwise!r} is not one of {', '.join(ELEMENTWISE)}")
    block_bytes = block_bytes or default_block_bytes(hidden_TH.device)
    plan = _Sweep(head, reference_head or head, groups, block_bytes, elementwise)
    loss, *totals = _SweepFunction.apply(  # type: ignore[no-untyped-call]
        hidden_TH, head.weight_VH, head.bias_V, plan
    )
    return Objective(loss, dict(zip(plan.names, totals, strict=True)))


class _Sweep:
    """The arguments of one sweep, apart from the tensors that autograd must see."""

    def __init__(
        self,
        head: LMHead,
        reference_head: LMHead,
        groups: tuple[Rows, ...],
        block_bytes: int,
        elementwise: str | None,
    ) -> None:
        self.head, self.reference_head, self.groups, self.block_bytes = head, reference_head, groups, block_bytes
        self.elementwise = elementwise
        self.names: list[str] = []  # of the sums, filled by the forward pass


@dataclass
class _Gradients:
    hidden_TH: Tensor
    weight_VH: Tensor | None
    bias_V: Tensor | None


class _SweepFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, plan: _Sweep) -> Any:
        dtype = compute_dtype(plan.head, hidden_TH.device)
        wanted = ctx.needs_input_grad
        gradients = None
        if any(wanted):
            # These add up over blocks, and a 16-bit accumulator would lose small summands.
            wide = torch.promote_types(weight_VH.dtype, torch.float32)
            gradients = _Gradients(
                hidden_TH=torch.zeros_like(hidden_TH),
                weight_VH=torch.zeros_like(weight_VH, dtype=wide) if wanted[1] else None,
                bias_V=torch.zeros_like(bias_V, dtype=wide) if bias_V is not None and wanted[2] else None,
            )
        with torch.autocast(hidden_TH.device.type, enabled=False):
            head, reference_head = heads_in(dtype, plan.head, plan.reference_head)
            loss, sums = _run(plan, hidden_TH, head, reference_head, gradients)
        plan.names.extend(sums)
        ctx.dtypes = (weight_VH.dtype, None if bias_V is None else bias_V.dtype)
        if gradients is not None:
            saved = (gradients.hidden_TH, gradients.weight_VH, gradients.bias_V)
            ctx.save_for_backward(*(x for x in saved if x is not None))
            ctx.has = tuple(x is not None for x in saved)
        ctx.mark_non_differentiable(*sums.values())
        return (loss, *sums.values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor, *_: Tensor) -> Any:
        saved = iter(ctx.saved_tensors)
        hidden_TH, weight_VH, bias_V = (next(saved) if has else None for has in ctx.has)
        assert hidden_TH is not None
        return (
            hidden_TH * loss_gradient.to(hidden_TH.dtype),
            None if weight_VH is None else (weight_VH * loss_gradient).to(ctx.dtypes[0]),
            None if bias_V is None else (bias_V * loss_gradient).to(ctx.dtypes[1]),
            None,
        )


def _run(
    plan: _Sweep, hidden_TH: Tensor, head: LMHead, reference_head: LMHead, gradients: _Gradients | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run all blocks of all groups, adding to ``gradients`` in place; return the loss and the sums by name."""
    loss = hidden_TH.new_zeros((), dtype=wide_dtype(head.weight_VH.dtype))
    sums: dict[str, Tensor] = {}
    heads = (head, reference_head)
    for group in plan.groups:
        terms_ = block_terms(group.terms, head.weight_VH.dtype, hidden_TH.device, plan.elementwise)
        wide_copies = terms_ is torch_terms_
        for block in blocks(group, hidden_TH, *heads, plan.block_bytes, wide_copies=wide_copies):
            rows, projected_nV = block.rows, block.projected_nV
            weight_n, value = terms_(rows, projected_nV, block.reference_nV, heads, gradients is not None, sums)
            loss += value
            if gradients is not None:
                _project_back(gradients, rows.index_N, block.hidden_nH, projected_nV, weight_n, head)
            del block, projected_nV  # or two blocks would be in memory while the next is projected
    return loss, sums


def _project_back(
    gradients: _Gradients, index_n: Tensor, hidden_nH: Tensor, gradient_nV: Tensor, weight_n: Tensor, head: LMHead
) -> None:
    weight_n1 = weight_n.unsqueeze(-1)
    back_nH = (gradient_nV @ head.weight_VH).to(weight_n.dtype) * weight_n1
    gradients.hidden_TH.index_add_(0, index_n, back_nH.to(gradients.hidden_TH.dtype))
    if gradients.weight_VH is not None:
        weighted_nH = (hidden_nH.to(weight_n.dtype) * weight_n1).to(gradient_nV.dtype)
        gradients.weight_VH += (gradient_nV.T @ weighted_nH).to(gradients.weight_VH.dtype)
    if gradients.bias_V is not None:
        gradients.bias_V += (gradient_nV.to(weight_n.dtype) * weight_n1).sum(dim=0).to(gradients.bias_V.dtype)
