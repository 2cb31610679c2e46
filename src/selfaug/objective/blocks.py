"""Row blocks: rows are projected a block at a time, so that the logits of all rows never exist at once.

The sweep (with gradients) and `values.py` (without) share them.

Shapes: T hidden states (flattened), N rows of a group, n rows of a block, V vocabulary, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name for it
from torch import Tensor

from selfaug.objective.head import LMHead
from selfaug.objective.rows import Rows

__all__ = ["Block", "blocks", "compute_dtype", "default_block_bytes", "heads_in", "slices", "wide_dtype"]

# On a CPU the elementwise work runs on slices that stay in a core's cache. On a GPU a kernel launch costs more than a
# trip to memory, so there a slice is the whole block.
_CPU_SLICE_ELEMENTS = 2**18
# float32 copies of a row that a term holds at once, in the worst case (JSD).
_TERM_COPIES = 6
# Numbers of rows for which matrix products are fastest; the larger one on a GPU only.
_TILES = (128, 32)


@dataclass(frozen=True)
class Block:
    """Some rows of a group, with their projections by both heads before scale and cap."""

    rows: Rows
    hidden_nH: Tensor
    projected_nV: Tensor
    reference_nV: Tensor | None


def default_block_bytes(device: torch.device) -> int:
    """Return the bytes that the sweep may hold beside its inputs: 160 MiB on a CPU, 448 MiB elsewhere.

    Together with the 16-bit gradient of 8,192 hidden states of 3,584, 448 MiB stay below 0.6 GB.
    """
    return (160 if device.type == "cpu" else 448) * 2**20


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of elementwise work on logits: float64 for float64 heads, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def compute_dtype(head: LMHead, device: torch.device) -> torch.dtype:
    """Return the dtype of the products: autocast's where it is on, else the head's."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return head.weight_VH.dtype


def heads_in(dtype: torch.dtype, head: LMHead, reference_head: LMHead) -> tuple[LMHead, LMHead]:
    """Return both heads in ``dtype``, detached; a weight that they share is converted once."""
    first = head.to(dtype)
    if reference_head.weight_VH is not head.weight_VH:
        return first, reference_head.to(dtype)
    bias_V = None if reference_head.bias_V is None else reference_head.bias_V.detach().to(dtype)
    return first, replace(reference_head, weight_VH=first.weight_VH, bias_V=bias_V)


def blocks(
    group: Rows,
    hidden_TH: Tensor,
    head: LMHead,
    reference_head: LMHead,
    block_bytes: int,
    *,
    wide_copies: bool = True,
) -> Iterator[Block]:
    """Yield the group's rows in blocks of at least one row whose logits fit ``block_bytes``, projected one by one.

    With ``wide_copies`` there is room for float32 copies of a block; the GPU kernels make none.
    """
    dtype = head.weight_VH.dtype
    for rows in _parts(group, _rows_per_block(group, head, hidden_TH.device, block_bytes, wide_copies)):
        hidden_nH = hidden_TH[rows.index_N].to(dtype)
        projected_nV = F.linear(hidden_nH, head.weight_VH, head.bias_V)
        reference_nV = None
        if rows.reference_NH is not None:
            reference_nH = rows.reference_NH.to(dtype)
            reference_nV = F.linear(reference_nH, reference_head.weight_VH, reference_head.bias_V)
        yield Block(rows, hidden_nH, projected_nV, reference_nV)
        del hidden_nH, projected_nV, reference_nV  # or two blocks would be in memory while the next is projected


def slices(count: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    """Yield the slices of a block's rows for elementwise work."""
    step = count if device.type != "cpu" else max(1, _CPU_SLICE_ELEMENTS // vocabulary)
    for i in range(0, count, step):
        yield slice(i, i + step)


def _rows_per_block(rows: Rows, head: LMHead, device: torch.device, block_bytes: int, wide_copies: bool) -> int:
    vocabulary = head.weight_VH.shape[0]
    projections = head.weight_VH.element_size() * (1 if rows.reference_NH is None else 2)
    copies = 4 * _TERM_COPIES if wide_copies and device.type != "cpu" else 0
    size = max(1, block_bytes // (vocabulary * (projections + copies)))
    # Whole tiles only (measured on a CPU: docs/results/objective.md).
    tile = next((tile for tile in _TILES if size >= tile and (tile == _TILES[-1] or device.type != "cpu")), 1)
    return size // tile * tile


def _parts(rows: Rows, size: int) -> Iterator[Rows]:
    def part(x: Tensor | None, i: int) -> Tensor | None:
        return None if x is None else x[i : i + size]

    for i in range(0, rows.index_N.numel(), size):
        yield Rows(
            index_N=rows.index_N[i : i + size],
            terms=tuple(
                type(w)(w.term, w.weight[i : i + size] if isinstance(w.weight, Tensor) else w.weight)
                for w in rows.terms
            ),
            label_N=part(rows.label_N, i),
            reference_NH=part(rows.reference_NH, i),
        )
