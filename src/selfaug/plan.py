"""Which sequences of an optimiser step are aligned, what are its divisors, and where is each prompt cut?

Pure: micro-batches in, index tensors and counts out. It runs on the CPU, once a step, where all micro-batches of the
step are at hand; only the counts of other ranks come from outside (`StepPlan.with_totals`).

Shapes: B rows and T tokens of a micro-batch, N selected positions. Positions index the flattened B · T.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

__all__ = ["MicroPlan", "ReferenceBatch", "StepPlan", "aligned_positions", "document_ids", "draw", "plan_step"]

IGNORED = -100


@dataclass(frozen=True)
class ReferenceBatch:
    """The inputs of the reference pass, and where in its flattened hidden states the drawn positions lie.

    ``inputs`` is ``None`` where the reference must see the micro-batch as it is (its own inputs are used).
    """

    inputs: Mapping[str, Any] | None
    index_N: Tensor
    tokens: int


@dataclass(frozen=True)
class MicroPlan:
    """One micro-batch: positions whose next token is trained, and those tokens; drawn aligned positions; its size.

    ``held_N``: the response positions of drawn sequences, where they are compared with the reference; the reference
    batch then serves aligned and held positions, in rising order. ``weight_N``: of the response positions, above 0;
    ``None`` where all weigh the same.
    """

    response_N: Tensor
    label_N: Tensor
    aligned_N: Tensor
    reference: ReferenceBatch | None
    tokens: int
    held_N: Tensor | None = None
    weight_N: Tensor | None = None


@dataclass(frozen=True)
class StepPlan:
    """One optimiser step. The counts are the divisors: of this rank until :meth:`with_totals`, then of all ranks.

    Args:
        micro: One entry a micro-batch of this rank.
        n_response: Response tokens (labels other than -100 that a position of the same document predicts).
        n_aligned: Aligned tokens of *all* sequences, drawn or not.
        anywhere: For each micro-batch, whether any rank runs its reference pass.
    """

    micro: tuple[MicroPlan, ...]
    n_response: int
    n_aligned: int
    anywhere: tuple[bool, ...]

    def counts(self) -> Tensor:
        """What the ranks must add up: the two divisors, then a 0 or 1 for each micro-batch's reference pass. int64."""
        return torch.tensor([self.n_response, self.n_aligned, *map(int, self.anywhere)])

    def with_totals(self, totals: Tensor) -> StepPlan:
        """The same plan with the counts summed over ranks."""
        n_response, n_aligned, *drawn = totals.tolist()
        return replace(self, n_response=n_response, n_aligned=n_aligned, anywhere=tuple(d > 0 for d in drawn))


def document_ids(batch: Mapping[str, Any]) -> Tensor:
    """B × T int64: which document of its row a token belongs to; -1 for padding.

    A document starts where ``position_ids`` is 0 (packing, padding-free), or with the row where there are none.
    Padding is where ``attention_mask`` is 0.
    """
    position_ids, mask = batch.get("position_ids"), batch.get("attention_mask")
    shape = batch["input_ids"].shape
    if position_ids is None:
        ids = torch.zeros(shape, dtype=torch.int64)
    else:
        ids = (position_ids.cpu().reshape(shape) == 0).to(torch.int64).cumsum(dim=1) - 1
    if mask is not None:
        ids = ids.masked_fill(mask.cpu().reshape(shape) == 0, -1)
    return ids


def _first_tokens(documents_BT: Tensor) -> Tensor:
    """B × T bool: the first token of each document. Nothing predicts it, so its label means nothing in any layout."""
    first_BT = torch.ones_like(documents_BT, dtype=torch.bool)
    first_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    return first_BT


def aligned_positions(labels_BT: Tensor, documents_BT: Tensor, align_boundary: bool = False) -> Tensor:
    """B × T bool: t with ``labels[t] == labels[t + 1] == -100``, both real tokens of one document.

    With ``align_boundary`` also the boundary: ``labels[t] == -100`` before a response token. The last token of an
    assistant turn before a user turn, padding, and the last token of a document are never aligned.
    """
    aligned_BT = torch.zeros_like(labels_BT, dtype=torch.bool)
    inside = (documents_BT[:, :-1] == documents_BT[:, 1:]) & (documents_BT[:, :-1] >= 0)
    prompt = labels_BT[:, :-1] == IGNORED
    if not align_boundary:
        prompt &= labels_BT[:, 1:] == IGNORED
    aligned_BT[:, :-1] = inside & prompt
    return aligned_BT


def draw(seed: int, step: int, tokens: Tensor, align_fraction: float) -> bool:
    """Whether a sequence is aligned in this step: ``hash(seed, step, tokens) / 2^64 < align_fraction``.

    A function of nothing else, so the draw is the same under any split into micro-batches, ranks or packed rows.
    """
    if align_fraction >= 1.0:
        return True
    digest = hashlib.blake2b(tokens.to(torch.int64).numpy().tobytes(), digest_size=8, key=f"{seed}:{step}".encode())
    return int.from_bytes(digest.digest(), "little") < align_fraction * 2**64


def plan_step(
    batches: Sequence[Mapping[str, Any]],
    *,
    seed: int,
    step: int,
    align_fraction: float = 1.0,
    align_boundary: bool = False,
    whole_reference: bool = False,
    align: bool = True,
    hold_response: bool = False,
    weigh: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> StepPlan:
    """The plan of one optimiser step on this rank.

    Args:
        batches: Collated micro-batches: ``input_ids``, ``labels``, and ``attention_mask`` or ``position_ids``.
        seed: Of the run.
        step: Optimiser steps done so far.
        align_fraction: Chance in (0, 1] that a sequence is drawn.
        align_boundary: Whether the last prompt position before a response is aligned too.
        whole_reference: Give the reference pass the whole micro-batch instead of the drawn prompts: where a position's
            hidden state depends on what follows it, or on the longest position of the batch.
        align: ``False`` for methods without alignment: no prompt position is drawn.
        hold_response: Whether the response positions of drawn sequences go through the reference pass. Without both
            there is none.
        weigh: From a document's tokens and the places of its learnt ones to their weights. A token of weight 0 is not
            learnt, and counts neither as response nor as prompt.
    """
    micro: list[MicroPlan] = []
    n_response = n_aligned = 0
    for batch in batches:
        documents_BT = document_ids(batch)
        labels_BT = batch["labels"].cpu().masked_fill(_first_tokens(documents_BT), IGNORED)
        response_BT = torch.zeros_like(labels_BT, dtype=torch.bool)
        response_BT[:, :-1] = (labels_BT[:, 1:] != IGNORED) & (documents_BT[:, :-1] == documents_BT[:, 1:])
        response_BT[:, :-1] &= documents_BT[:, :-1] >= 0
        weight_BT = None if weigh is None else _weights(batch, response_BT, documents_BT, weigh)
        if weight_BT is not None:
            response_BT &= weight_BT > 0
        response_N = response_BT.flatten().nonzero().squeeze(-1)
        n_response += response_N.numel()
        aligned_N, reference, held_N = response_N[:0], None, None
        if align or hold_response:
            aligned_BT = aligned_positions(labels_BT, documents_BT, align_boundary) & align
            n_aligned += int(aligned_BT.sum())
            compared_BT = aligned_BT | response_BT if hold_response else aligned_BT
            drawn = _drawn_documents(batch, compared_BT, documents_BT, seed, step, align_fraction)
            aligned_N, reference = _cut(batch, drawn, whole_reference)
            if hold_response:
                held_N = aligned_N[response_BT.flatten()[aligned_N]]
                aligned_N = aligned_N[aligned_BT.flatten()[aligned_N]]
        label_N = labels_BT.flatten()[response_N + 1]
        tokens = int((documents_BT >= 0).sum())
        weight_N = None if weight_BT is None else weight_BT.flatten()[response_N]
        micro.append(MicroPlan(response_N, label_N, aligned_N, reference, tokens, held_N, weight_N))
    return StepPlan(tuple(micro), n_response, n_aligned, tuple(m.reference is not None for m in micro))


@dataclass(frozen=True)
class _Drawn:
    """A drawn document: its row, its first token, one past its last compared position, its compared positions."""

    row: int
    start: int
    stop: int
    positions: Tensor


def _drawn_documents(
    batch: Mapping[str, Any], aligned_BT: Tensor, documents_BT: Tensor, seed: int, step: int, fraction: float
) -> list[_Drawn]:
    input_ids_BT = batch["input_ids"].cpu()
    drawn = []
    for row, start, stop in _bounds(documents_BT):
        positions = aligned_BT[row, start:stop].nonzero().squeeze(-1) + start
        if positions.numel() and draw(seed, step, input_ids_BT[row, start:stop], fraction):
            drawn.append(_Drawn(row, start, int(positions[-1]) + 1, positions))
    return drawn


def _bounds(documents_BT: Tensor) -> Iterator[tuple[int, int, int]]:
    """Row, first token, and one past the last token of each document (and of each stretch of padding)."""
    for row, documents_T in enumerate(documents_BT):
        edges = torch.nonzero(documents_T[1:] != documents_T[:-1]).squeeze(-1) + 1
        for start, stop in pairwise([0, *edges.tolist(), len(documents_T)]):
            yield row, start, stop


def _weights(
    batch: Mapping[str, Any], response_BT: Tensor, documents_BT: Tensor, weigh: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """B × T float32: the weight of the token that a response position predicts; 0 elsewhere."""
    input_ids_BT = batch["input_ids"].cpu()
    weight_BT = torch.zeros(response_BT.shape)
    for row, start, stop in _bounds(documents_BT):
        positions = response_BT[row, start:stop].nonzero().squeeze(-1)
        if positions.numel():
            weight_BT[row, start + positions] = weigh(input_ids_BT[row, start:stop], positions + 1)
    return weight_BT


def _cut(batch: Mapping[str, Any], drawn: list[_Drawn], whole: bool) -> tuple[Tensor, ReferenceBatch | None]:
    """The drawn positions in the micro-batch, and the reference batch made of the drawn prompts up to their last one.

    The reference batch has the layout of the micro-batch: padded rows where it has an attention mask, else one
    padding-free row.
    """
    input_ids_BT = batch["input_ids"].cpu()
    width = input_ids_BT.shape[1]
    if not drawn:
        return torch.empty(0, dtype=torch.int64), None
    aligned_N = torch.cat([d.row * width + d.positions for d in drawn])
    if whole:
        return aligned_N, ReferenceBatch(None, aligned_N, input_ids_BT.numel())
    prompts = [input_ids_BT[d.row, d.start : d.stop] for d in drawn]
    lengths = [len(p) for p in prompts]
    if batch.get("attention_mask") is not None:
        longest = max(lengths)
        offsets = [i * longest for i in range(len(prompts))]
        inputs = _padded(prompts, longest)
    else:
        offsets = torch.tensor([0, *lengths]).cumsum(0)[:-1].tolist()
        inputs = _padding_free(prompts, batch)
    index_N = torch.cat([o + d.positions - d.start for o, d in zip(offsets, drawn, strict=True)])
    return aligned_N, ReferenceBatch(inputs, index_N, sum(lengths))


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
