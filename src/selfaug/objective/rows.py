"""Rows of hidden states with the terms that apply to them, and the result of an objective.

Shapes: T hidden states of a micro-batch (flattened), N rows of one group, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from selfaug.objective.head import LMHead
from selfaug.objective.terms import RowTerm

__all__ = ["Objective", "Rows", "WeightedTerm", "check_rows"]


@dataclass(frozen=True)
class WeightedTerm:
    """A row term and its weight in the loss.

    Args:
        term: Row term.
        weight: Factor that already holds α and the divisor of the step: one number, or one for each row (N).
    """

    term: RowTerm
    weight: float | Tensor


@dataclass(frozen=True)
class Rows:
    """A group of rows with the same terms. Groups of one objective share no row.

    Args:
        index_N: Positions in the flattened hidden states, int64.
        terms: Weighted terms of every row, at least one.
        label_N: Next tokens, int64, where a term needs them.
        reference_NH: Final hidden states of the reference at the same positions, where a term needs them.
    """

    index_N: Tensor
    terms: tuple[WeightedTerm, ...]
    label_N: Tensor | None = None
    reference_NH: Tensor | None = None


@dataclass(frozen=True)
class Objective:
    """The result of an objective.

    Args:
        loss: Weighted sum over all rows and terms, with a graph.
        sums: Unweighted sums of each term and its statistics by name, detached.
    """

    loss: Tensor
    sums: Mapping[str, Tensor]


def check_rows(hidden_TH: Tensor, head: LMHead, groups: tuple[Rows, ...]) -> None:
    """Raise ``ValueError`` if shapes do not fit or a term lacks its labels or reference."""
    if hidden_TH.dim() != 2 or hidden_TH.shape[1] != head.weight_VH.shape[1]:
        raise ValueError(f"hidden states {tuple(hidden_TH.shape)} do not fit a head {tuple(head.weight_VH.shape)}")
    for rows in groups:
        count = rows.index_N.numel()
        if not rows.terms:
            raise ValueError("a group of rows has no term")
        for weighted in rows.terms:
            term = weighted.term
            if term.needs_label and (rows.label_N is None or rows.label_N.numel() != count):
                raise ValueError(f"the term {term.name!r} needs {count} labels")
            if term.needs_reference and (rows.reference_NH is None or len(rows.reference_NH) != count):
                raise ValueError(f"the term {term.name!r} needs {count} reference hidden states")
