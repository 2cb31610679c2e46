"""Values of each row under several terms, without gradients.

Shapes: N rows, V vocabulary, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfaug.objective.blocks import blocks, compute_dtype, default_block_bytes, heads_in, slices, wide_dtype
from selfaug.objective.head import LMHead
from selfaug.objective.rows import Rows, WeightedTerm, check_rows
from selfaug.objective.terms import NLL, RowResult, RowTerm

__all__ = ["ReferenceNLL", "row_values"]


@dataclass(frozen=True)
class ReferenceNLL:
    """``-log softmax(reference logits)[label]``: the base's NLL, out of the reference pass; it has no gradient."""

    name: str = "reference_nll"
    needs_reference: bool = True
    needs_label: bool = True

    def __call__(  # noqa: D102
        self, logits_NV: Tensor, reference_NV: Tensor | None, label_N: Tensor | None, *, gradient: bool
    ) -> RowResult:
        if gradient:
            raise ValueError("the reference is constant: its NLL has no gradient with respect to the tuned logits")
        assert reference_NV is not None
        return RowResult(NLL()(reference_NV, None, label_N, gradient=False).value_N, None)

    def definition(self, logits_NV: Tensor, reference_NV: Tensor | None, label_N: Tensor | None) -> Tensor:  # noqa: D102
        assert reference_NV is not None
        return NLL().definition(reference_NV, None, label_N)


@torch.no_grad()
def row_values(
    hidden_NH: Tensor,
    head: LMHead,
    terms: Sequence[RowTerm],
    *,
    reference_NH: Tensor | None = None,
    reference_head: LMHead | None = None,
    label_N: Tensor | None = None,
    block_bytes: int | None = None,
) -> dict[str, Tensor]:
    """``value_n = term(head(hidden_n), reference_head(reference_n), label_n)`` for each term, in row blocks.

    Blocks, products and terms are the sweep's, but each row's value is kept and nothing is differentiated. With all
    weights 1, the sum over rows is the sweep's loss.

    Args:
        hidden_NH: Final hidden states of the tuned model.
        head: Projection of the tuned model.
        terms: Row terms with different names, at least one.
        reference_NH: Final hidden states of the base at the same positions, where a term needs them.
        reference_head: Projection of the base; ``None`` where both models share one.
        label_N: Next tokens, int64, where a term needs them.
        block_bytes: Bound in bytes on memory beside inputs and results; ``None`` for the device's default.

    Returns:
        By term name, N values in nats, float32 (float64 for float64 heads), on the device of ``hidden_NH``.

    Raises:
        ValueError: If shapes do not fit, a term lacks its labels or reference, or two terms have the same name.
    """
    names = [term.name for term in terms]
    if len(set(names)) < len(names):
        raise ValueError(f"two terms have the same name: {', '.join(names)}")
    index_N = torch.arange(len(hidden_NH), device=hidden_NH.device)
    group = Rows(index_N, tuple(WeightedTerm(term, 1.0) for term in terms), label_N, reference_NH)
    check_rows(hidden_NH, head, (group,))
    dtype = compute_dtype(head, hidden_NH.device)
    wide = wide_dtype(dtype)
    values = {name: torch.empty(len(hidden_NH), dtype=wide, device=hidden_NH.device) for name in names}
    limit = block_bytes or default_block_bytes(hidden_NH.device)
    with torch.autocast(hidden_NH.device.type, enabled=False):
        head, reference_head = heads_in(dtype, head, reference_head or head)
        for block in blocks(group, hidden_NH, head, reference_head, limit):
            count, vocabulary = block.projected_nV.shape
            for part in slices(count, vocabulary, hidden_NH.device):
                logits_nV = head.shape(block.projected_nV[part].to(wide))
                reference_nV = None
                if block.reference_nV is not None:
                    reference_nV = reference_head.shape(block.reference_nV[part].to(wide))
                label_n = None if block.rows.label_N is None else block.rows.label_N[part]
                for term in terms:
                    value_n = term(logits_nV, reference_nV, label_n, gradient=False).value_N
                    values[term.name][block.rows.index_N[part]] = value_n
            del block
    return values
