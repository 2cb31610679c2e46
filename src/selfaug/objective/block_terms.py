"""The terms of a block by PyTorch's operations or by our GPU kernels, and the choice between them.

Both are functions of one type: they return the values of a block's rows and write their gradient over its logits. The
sweep chooses once for each group.

Shapes: n rows of a block, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from selfaug.common.errors import ConfigError
from selfaug.objective import kernels
from selfaug.objective.blocks import slices, wide_dtype
from selfaug.objective.head import LMHead
from selfaug.objective.rows import Rows, WeightedTerm

__all__ = ["ELEMENTWISE", "BlockTerms", "block_terms", "kernel_terms_", "row_weights", "torch_terms_"]

ELEMENTWISE = ("kernels", "torch")

# (rows, projected_nV, reference_nV, (head, reference head), gradient, sums by name) -> (row weights, weighted value).
# With ``gradient``, ``projected_nV`` is overwritten by the gradient divided by the returned row weights: these (α over
# a count of tokens) are small, and without them the gradient keeps its precision in 16 bits. ``sums`` is added to.
BlockTerms = Callable[
    [Rows, Tensor, "Tensor | None", tuple[LMHead, LMHead], bool, dict[str, Tensor]], tuple[Tensor, Tensor]
]


def block_terms(
    terms: Sequence[WeightedTerm], dtype: torch.dtype, device: torch.device, elementwise: str | None = None
) -> BlockTerms:
    """Return the kernels on a GPU where all ``terms`` have a kernel form, else PyTorch's operations.

    Args:
        terms: Weighted terms of the group.
        dtype: Dtype of the projected rows.
        device: Device of the projected rows.
        elementwise: ``kernels`` or ``torch`` to request one; ``None`` to choose.

    Raises:
        ConfigError: If the kernels are requested and cannot run here.
    """
    if elementwise == "torch":
        return torch_terms_
    obstacle = kernels.obstacle([weighted.term for weighted in terms], dtype, device)
    if obstacle is None and (elementwise == "kernels" or kernels.preferred(device)):
        return kernel_terms_
    if elementwise == "kernels":
        raise ConfigError(
            f"elementwise='kernels' asks for GPU kernels, but {obstacle}.",
            "leave elementwise out: PyTorch's own operations are taken where the kernels cannot be had.",
        )
    return torch_terms_


def row_weights(rows: Rows, wide: torch.dtype, device: torch.device) -> list[Tensor]:
    """Return each term's weight for each row (n), without a wait for the device."""
    count = rows.index_N.numel()
    return [
        w.weight.to(device, wide).expand(count)
        if isinstance(w.weight, Tensor)
        else torch.full((count,), w.weight, dtype=wide, device=device)
        for w in rows.terms
    ]


def row_scale(weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor] | None]:
    """Return the divisor of each row's gradient (n), and each term's weight divided by it (``None`` if all are 1)."""
    if len(weights) == 1:
        return weights[0], None
    scale_n = torch.stack(list(weights)).abs().amax(dim=0)
    safe_n = scale_n.clamp(min=torch.finfo(scale_n.dtype).tiny)
    return scale_n, [weight_n / safe_n for weight_n in weights]


def add_sum(sums: dict[str, Tensor], name: str, part_n: Tensor) -> None:
    """Add the sum of ``part_n`` under ``name``."""
    sums[name] = sums[name] + part_n.sum() if name in sums else part_n.sum()


def torch_terms_(
    rows: Rows,
    projected_nV: Tensor,
    reference_nV: Tensor | None,
    heads: tuple[LMHead, LMHead],
    gradient: bool,
    sums: dict[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """`BlockTerms` for any terms, by PyTorch's operations on float32 (float64) copies of a slice of the rows."""
    head, reference_head = heads
    wide = wide_dtype(projected_nV.dtype)
    count, vocabulary = projected_nV.shape
    weights = row_weights(rows, wide, projected_nV.device)
    scale_n, shares = row_scale(weights)
    value = projected_nV.new_zeros((), dtype=wide)
    for part in slices(count, vocabulary, projected_nV.device):
        logits_nV = head.shape(projected_nV[part].to(wide))
        part_reference_nV = None if reference_nV is None else reference_head.shape(reference_nV[part].to(wide))
        label_n = None if rows.label_N is None else rows.label_N[part]
        total_nV: Tensor | None = None
        for i, weighted in enumerate(rows.terms):
            result = weighted.term(logits_nV, part_reference_nV, label_n, gradient=gradient)
            value += (result.value_N * weights[i][part]).sum()
            for name, part_n in ((weighted.term.name, result.value_N), *result.statistics.items()):
                add_sum(sums, name, part_n)
            if result.gradient_NV is not None:
                part_nV = result.gradient_NV
                if shares is not None:
                    part_nV.mul_(shares[i][part].unsqueeze(-1))
                total_nV = part_nV if total_nV is None else total_nV.add_(part_nV)
        if total_nV is not None:
            projected_nV[part] = head.unshape_(total_nV, logits_nV)
    return scale_n, value


def kernel_terms_(
    rows: Rows,
    projected_nV: Tensor,
    reference_nV: Tensor | None,
    heads: tuple[LMHead, LMHead],
    gradient: bool,
    sums: dict[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """`BlockTerms` for terms with a kernel form, by one kernel in place, without a copy of the block."""
    weights = row_weights(rows, torch.float32, projected_nV.device)
    scale_n, shares = row_scale(weights)
    results = kernels.rows_(
        projected_nV,
        reference_nV,
        rows.label_N,
        terms=[weighted.term for weighted in rows.terms],
        heads=heads,
        shares=shares,
        gradient=gradient,
    )
    value = projected_nV.new_zeros((), dtype=torch.float32)
    for weight_n, (value_n, statistics), weighted in zip(weights, results, rows.terms, strict=True):
        value += (value_n * weight_n).sum()
        for name, part_n in ((weighted.term.name, value_n), *statistics.items()):
            add_sum(sums, name, part_n)
    return scale_n, value
