"""The reference batch: inputs of the reference pass, and the indices of the drawn positions in its hidden states.

Shapes: B rows and T tokens of a micro-batch, N drawn positions, R rows of the reference's hidden states, S tokens of a
slice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "DrawnDocument", "LongPrompt", "ReferenceBatch", "ReferenceLayout", "Stored", "reference_batch", "sequence_key",
    "slice_size",
]  # fmt: skip

# Largest attention mask, in entries: attention without flash kernels forms one of S × T.
_MASK = 2**26
_SHORTEST = 256


@dataclass(frozen=True)
class ReferenceLayout:
    """The layout of the reference pass.

    Args:
        whole: Whether the pass takes the micro-batch as it is, because a position's hidden state depends on the tokens
            after it or on the longest row of the batch.
        concatenate: Whether prompts form one padding-free row even where the micro-batch is padded; only for attention
            kernels that keep documents separate, since otherwise a row costs the square of its whole length.
        cached: Whether hidden states come from disk, without a pass.
        slice: Number of tokens of a slice; prompts longer than this run one by one, in slices; ``None`` for none.
    """

    whole: bool = False
    concatenate: bool = False
    cached: bool = False
    slice: int | None = None


@dataclass(frozen=True)
class Stored:
    """Cached hidden states of one sequence: its key, and the indices of the wanted ones among its aligned positions."""

    key: str
    rows_N: Tensor


@dataclass(frozen=True)
class LongPrompt:
    """A prompt that runs through the reference by itself: its tokens, and the drawn positions in it."""

    input_ids_T: Tensor
    index_N: Tensor


@dataclass(frozen=True)
class ReferenceBatch:
    """The inputs of the reference pass, and the indices of the drawn positions in its flattened hidden states.

    The hidden states of long prompts, at their drawn positions alone, follow those of ``inputs``.

    Args:
        inputs: Inputs of the model; ``None`` to use those of the micro-batch, or with ``stored``; empty where every
            prompt is ``long``.
        index_N: Indices of the drawn positions.
        tokens: Number of tokens of the pass.
        stored: Cached hidden states that replace the pass; ``None`` without a cache.
        long: Prompts that run one by one, in slices.
        passes: Number of calls of the model: one for ``inputs``, and one for each slice.
    """

    inputs: Mapping[str, Any] | None
    index_N: Tensor
    tokens: int
    stored: tuple[Stored, ...] | None = None
    long: tuple[LongPrompt, ...] = ()
    passes: int = 1


@dataclass(frozen=True)
class DrawnDocument:
    """A drawn document of a micro-batch. Positions count from the start of its row.

    Args:
        row: Row of the micro-batch.
        start: Position of its first token.
        positions: Drawn positions, rising, at least one.
        end: Position after its last token.
        aligned: All aligned positions, drawn or not.
    """

    row: int
    start: int
    positions: Tensor
    end: int
    aligned: Tensor

    @property
    def stop(self) -> int:
        """Position after the last drawn one, where the prompt is cut."""
        return int(self.positions[-1]) + 1

    def tokens(self, input_ids_BT: Tensor) -> Tensor:
        """Return the prompt up to its last drawn position."""
        return input_ids_BT[self.row, self.start : self.stop]

    def stored(self, input_ids_BT: Tensor) -> Stored:
        """Return the cached hidden states that serve the drawn positions."""
        key = sequence_key(input_ids_BT[self.row, self.start : self.end], self.aligned - self.start)
        return Stored(key, torch.searchsorted(self.aligned, self.positions))


def sequence_key(tokens_T: Tensor, aligned_N: Tensor) -> str:
    """Return a hash (32 hexadecimal digits) of a sequence's tokens and of its aligned positions within it."""
    sha = hashlib.blake2b(digest_size=16)
    for part in (tokens_T, aligned_N):
        sha.update(f"{len(part)}:".encode() + part.to(torch.int64).cpu().numpy().tobytes())
    return sha.hexdigest()


def slice_size(tokens: int, wanted: int) -> int:
    """Return S: ``wanted``, or less for prompts so long that the attention mask S × T would dominate memory."""
    return min(wanted, max(_SHORTEST, _MASK // max(tokens, 1)))


def reference_batch(
    batch: Mapping[str, Any], drawn: Sequence[DrawnDocument], layout: ReferenceLayout
) -> ReferenceBatch | None:
    """Return the batch of drawn prompts, each cut after its last drawn position; ``None`` without any.

    The batch has the layout of the micro-batch (padded rows with an attention mask, else one padding-free row) unless
    ``layout`` says otherwise.
    """
    if not drawn:
        return None
    input_ids_BT = batch["input_ids"].cpu()
    if layout.cached:
        stored = tuple(d.stored(input_ids_BT) for d in drawn)
        return ReferenceBatch(None, torch.arange(sum(len(each.rows_N) for each in stored)), 0, stored, passes=0)
    if layout.whole:
        width = input_ids_BT.shape[1]
        index_N = torch.cat([d.row * width + d.positions for d in drawn])
        return ReferenceBatch(None, index_N, input_ids_BT.numel())
    prompts = [d.tokens(input_ids_BT) for d in drawn]
    lengths = [len(p) for p in prompts]
    is_long = [layout.slice is not None and n > layout.slice for n in lengths]
    together = [p for p, long in zip(prompts, is_long, strict=True) if not long]
    inputs, starts, size = _together(batch, together, layout)
    next_start = iter(starts)
    index, long_prompts = [], []
    for d, prompt, long in zip(drawn, prompts, is_long, strict=True):
        places = d.positions - d.start
        if long:
            long_prompts.append(LongPrompt(prompt, places))
            places = torch.arange(len(places)) + size
            size += len(places)
        else:
            places = places + next(next_start)
        index.append(places)
    slices = [-(-n // slice_size(n, layout.slice or n)) for n, long in zip(lengths, is_long, strict=True) if long]
    passes = sum(slices) + bool(together)
    return ReferenceBatch(inputs, torch.cat(index), sum(lengths), long=tuple(long_prompts), passes=passes)


def _together(
    batch: Mapping[str, Any], prompts: list[Tensor], layout: ReferenceLayout
) -> tuple[dict[str, Any], list[int], int]:
    """Return the inputs of one pass over prompts, each one's start in the flattened hidden states, and their number."""
    if not prompts:
        return {}, [], 0
    lengths = [len(p) for p in prompts]
    if batch.get("attention_mask") is not None and not layout.concatenate:
        longest = max(lengths)
        return _padded(prompts, longest), [i * longest for i in range(len(prompts))], len(prompts) * longest
    starts = torch.tensor([0, *lengths]).cumsum(0)[:-1].tolist()
    return _padding_free(prompts, batch), starts, sum(lengths)


def _padded(prompts: list[Tensor], longest: int) -> dict[str, Any]:
    input_ids_BT = torch.zeros(len(prompts), longest, dtype=prompts[0].dtype)
    mask_BT = torch.zeros_like(input_ids_BT)
    for row, prompt in enumerate(prompts):
        input_ids_BT[row, : len(prompt)] = prompt
        mask_BT[row, : len(prompt)] = 1
    return {"input_ids": input_ids_BT, "attention_mask": mask_BT}


def _padding_free(prompts: list[Tensor], batch: Mapping[str, Any]) -> dict[str, Any]:
    lengths = torch.tensor([len(p) for p in prompts])
    ends = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(torch.int32)
    inputs: dict[str, Any] = {
        "input_ids": torch.cat(prompts)[None],
        "position_ids": torch.cat([torch.arange(len(p)) for p in prompts])[None],
    }
    # The kernels for variable lengths need these wherever the collator provides them for the training pass.
    if "cu_seq_lens_q" in batch:
        inputs["cu_seq_lens_q"] = inputs["cu_seq_lens_k"] = ends
        inputs["max_length_q"] = inputs["max_length_k"] = int(lengths.max())
    if "packed_seq_lengths" in batch:  # Unsloth
        inputs["packed_seq_lengths"] = lengths.to(torch.int32)
    if "seq_idx" in batch:
        inputs["seq_idx"] = torch.repeat_interleave(torch.arange(len(prompts), dtype=torch.int32), lengths)[None]
    return inputs
