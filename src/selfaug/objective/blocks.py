"""Which rows are projected together, so that the logits of all of them never exist at once?

Shared by the sweep, which needs gradients, and by the values of rows, which do not.

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

# On a CPU the elementwise work runs on slices that stay in a core's cache; on a GPU a launch costs more than a trip
# to memory, so there a slice is the whole block.
_CPU_SLICE_ELEMENTS = 2**18
# float32 copies of a row alive at once inside a term, worst case (JSD).
_TERM_COPIES = 6
# Of rows of a product, the larger one on a GPU.
_TILES = (128, 32)


@dataclass(frozen=True)
class Block:
    """Some rows of a group, and what the heads made of them before scale and cap."""

    rows: Rows
    hidden_nH: Tensor
    projected_nV: Tensor
    reference_nV: Tensor | None


def default_block_bytes(device: torch.device) -> int:
    """Memory that the sweep may hold beside its inputs, in bytes: 160 MiB on a CPU, 448 MiB elsewhere.

    With the gradient of 8,192 hidden states of 3,584 in 16 bits, the latter stays below 0.6 GB.
    """
    return (160 if device.type == "cpu" else 448) * 2**20


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of everything on logits: float64 for float64 heads, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def compute_dtype(head: LMHead, device: torch.device) -> torch.dtype:
    """The dtype of the products: that of autocast where it is on, else the head's."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return head.weight_VH.dtype


def heads_in(dtype: torch.dtype, head: LMHead, reference_head: LMHead) -> tuple[LMHead, LMHead]:
    """Both heads computing in ``dtype``, detached; a weight that they share is converted once."""
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
    """The group's rows in blocks whose logits fit ``block_bytes`` (at least one row a block), projected one by one.

    ``wide_copies``: whether the elementwise work on a block makes float32 copies of it; the GPU kernels make none.
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
        del hidden_nH, projected_nV, reference_nV  # before the next block is projected


def slices(count: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    """The rows of a block in slices for elementwise work."""
    step = count if device.type != "cpu" else max(1, _CPU_SLICE_ELEMENTS // vocabulary)
    for i in range(0, count, step):
        yield slice(i, i + step)


def _rows_per_block(rows: Rows, head: LMHead, device: torch.device, block_bytes: int, wide_copies: bool) -> int:
    vocabulary = head.weight_VH.shape[0]
    projections = head.weight_VH.element_size() * (1 if rows.reference_NH is None else 2)
    copies = 4 * _TERM_COPIES if wide_copies and device.type != "cpu" else 0
    size = max(1, block_bytes // (vocabulary * (projections + copies)))
    # Matrix products are fastest on whole tiles of rows (on a CPU measured: docs/results.md).
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
