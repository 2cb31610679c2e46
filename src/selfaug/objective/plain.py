"""The definition of the objective: dense logits and autograd.

This slow exact implementation is shipped so that anyone can check the fast one (`sweep.py`) against it. It uses each
term's `definition`; the values and gradients of the sweep come from other code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selfaug.objective.head import LMHead
from selfaug.objective.rows import Objective, Rows, check_rows

__all__ = ["plain"]


def plain(hidden_TH: Tensor, head: LMHead, groups: Sequence[Rows], reference_head: LMHead | None = None) -> Objective:
    """``Σ_groups Σ_terms Σ_n weight · term(head(hidden_n), reference_head(reference_n), label_n)``.

    Takes the arguments of :func:`selfaug.objective.sweep.sweep` and returns the same result. It holds N × V logits and
    differentiates the terms' values through them.
    """
    check_rows(hidden_TH, head, tuple(groups))
    wide = torch.float64 if hidden_TH.dtype == torch.float64 else torch.float32
    reference_head = reference_head or head
    loss = hidden_TH.sum().to(wide) * 0
    sums: dict[str, Tensor] = {}
    for rows in groups:
        if rows.index_N.numel() == 0:
            continue
        hidden_NH = hidden_TH[rows.index_N].to(head.weight_VH.dtype)
        logits_NV = head.logits(hidden_NH).to(wide)
        reference_NV = None
        if rows.reference_NH is not None:
            with torch.no_grad():
                reference_NV = reference_head.logits(rows.reference_NH.to(reference_head.weight_VH.dtype)).to(wide)
        for weighted in rows.terms:
            value_N = weighted.term.definition(logits_NV, reference_NV, rows.label_N)
            loss = loss + (value_N * weighted.weight).sum()
            with torch.no_grad():
                statistics = weighted.term(logits_NV, reference_NV, rows.label_N, gradient=False).statistics
            for name, part_N in ((weighted.term.name, value_N.detach()), *statistics.items()):
                sums[name] = sums[name] + part_N.sum() if name in sums else part_N.sum()
    return Objective(loss, sums)
