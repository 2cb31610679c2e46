"""What does the reference pass of one micro-batch see, and where in its hidden states do the drawn positions lie?

Shapes: B rows and T tokens of a micro-batch, N drawn positions, R rows of the reference's hidden states.
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
]  # fmt: skip


@dataclass(frozen=True)
class ReferenceLayout:
    """How the reference pass takes its prompts.

    Args:
        whole: The micro-batch as it is: where a position's hidden state depends on what follows it, or on the longest
            position of the batch.
        concatenate: One padding-free row even where the micro-batch is padded: for attention with kernels for rows of
            several documents. Without them such a row costs the square of its whole length.
        cached: No pass at all: the hidden states are on disk, and the batch names which of them.
        slice: Prompts longer than this many tokens go by themselves, in slices of it; ``None`` for none.
    """

    whole: bool = False
    concatenate: bool = False
    cached: bool = False
    slice: int | None = None


@dataclass(frozen=True)
class Stored:
    """Hidden states of one sequence in a reference cache: the sequence's key, and which of its aligned positions."""

    key: str
    rows_N: Tensor


@dataclass(frozen=True)
class LongPrompt:
    """A prompt that goes through the reference by itself: its tokens, and the drawn positions among them."""

    input_ids_T: Tensor
    index_N: Tensor


@dataclass(frozen=True)
class ReferenceBatch:
    """The inputs of the reference pass, and where in its flattened hidden states the drawn positions lie.

    ``inputs`` is ``None`` where the reference must see the micro-batch as it is (its own inputs are used), and where
    there is no pass because everything is ``stored``; it is empty where every prompt is ``long``. The hidden states of
    long prompts, at their drawn positions alone, follow those of ``inputs``.
    """

    inputs: Mapping[str, Any] | None
    index_N: Tensor
    tokens: int
    stored: tuple[Stored, ...] | None = None
    long: tuple[LongPrompt, ...] = ()


@dataclass(frozen=True)
class DrawnDocument:
    """A drawn document: its row, its first token, and its drawn positions in that row (rising, not empty).

    Args:
        row: In the micro-batch.
        start: Its first token.
        positions: In the row.
        end: One past its last token.
        aligned: All its aligned positions, drawn or not, in the row.
    """

    row: int
    start: int
    positions: Tensor
    end: int
    aligned: Tensor

    @property
    def stop(self) -> int:
        """One past the last drawn position: the prompt is cut there."""
        return int(self.positions[-1]) + 1

    def tokens(self, input_ids_BT: Tensor) -> Tensor:
        """The prompt up to its last drawn position."""
        return input_ids_BT[self.row, self.start : self.stop]

    def stored(self, input_ids_BT: Tensor) -> Stored:
        """What a reference cache is asked for."""
        key = sequence_key(input_ids_BT[self.row, self.start : self.end], self.aligned - self.start)
        return Stored(key, torch.searchsorted(self.aligned, self.positions))


def sequence_key(tokens_T: Tensor, aligned_N: Tensor) -> str:
    """Hash of a sequence's tokens and aligned positions, whatever row or batch it lies in: 32 hexadecimal digits."""
    sha = hashlib.blake2b(digest_size=16)
    for part in (tokens_T, aligned_N):
        sha.update(f"{len(part)}:".encode() + part.to(torch.int64).cpu().numpy().tobytes())
    return sha.hexdigest()


def reference_batch(
    batch: Mapping[str, Any], drawn: Sequence[DrawnDocument], layout: ReferenceLayout
) -> ReferenceBatch | None:
    """The reference batch made of the drawn prompts, each cut behind its last drawn position; ``None`` without any.

    It has the layout of the micro-batch (padded rows where that has an attention mask, else one padding-free row)
    unless ``layout`` says otherwise.
    """
    if not drawn:
        return None
    input_ids_BT = batch["input_ids"].cpu()
    if layout.cached:
        stored = tuple(d.stored(input_ids_BT) for d in drawn)
        return ReferenceBatch(None, torch.arange(sum(len(each.rows_N) for each in stored)), 0, stored)
    if layout.whole:
        width = input_ids_BT.shape[1]
        index_N = torch.cat([d.row * width + d.positions for d in drawn])
        return ReferenceBatch(None, index_N, input_ids_BT.numel())
    prompts = [d.tokens(input_ids_BT) for d in drawn]
    lengths = [len(p) for p in prompts]
    is_long = [layout.slice is not None and n > layout.slice for n in lengths]
    together = [p for p, long in zip(prompts, is_long, strict=True) if not long]
    inputs, starts, size = _together(batch, together, layout)
    at = iter(starts)
    index, long_prompts = [], []
    for d, prompt, long in zip(drawn, prompts, is_long, strict=True):
        places = d.positions - d.start
        if long:
            long_prompts.append(LongPrompt(prompt, places))
            places = torch.arange(len(places)) + size
            size += len(places)
        else:
            places = places + next(at)
        index.append(places)
    return ReferenceBatch(inputs, torch.cat(index), sum(lengths), long=tuple(long_prompts))


def _together(
    batch: Mapping[str, Any], prompts: list[Tensor], layout: ReferenceLayout
) -> tuple[dict[str, Any], list[int], int]:
    """The inputs of one pass over several prompts; where each begins in its hidden states, flattened; their number."""
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
    # What the collator gives the training pass for variable-length kernels, the reference pass gets too.
    if "cu_seq_lens_q" in batch:
        inputs["cu_seq_lens_q"] = inputs["cu_seq_lens_k"] = ends
        inputs["max_length_q"] = inputs["max_length_k"] = int(lengths.max())
    if "seq_idx" in batch:
        inputs["seq_idx"] = torch.repeat_interleave(torch.arange(len(prompts), dtype=torch.int32), lengths)[None]
    return inputs
