"""The plan of an optimiser step: the sequences and tokens that are aligned, and the divisors of the loss.

Planning is a pure function from micro-batches to index tensors and counts, on the CPU. What depends on a micro-batch
alone (`read_batch`) can be had where it is collated; the draws follow once a step, where all micro-batches of the step
are at hand. Only the counts of other ranks come from outside (`StepPlan.with_totals`).

Shapes: B rows and T tokens of a micro-batch, N selected positions. Positions index the flattened B · T tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfaug.common.errors import ConfigError
from selfaug.planning.reference_batch import DrawnDocument, ReferenceBatch, ReferenceLayout, reference_batch

__all__ = [
    "BatchPositions", "MicroPlan", "StepPlan", "aligned_positions", "document_ids", "draw", "draw_tokens", "plan_step",
    "read_batch",
]  # fmt: skip

IGNORED = -100


@dataclass(frozen=True)
class BatchPositions:
    """What the plan needs of one micro-batch, before anything is drawn; on the CPU.

    It is no mapping and has no method ``to``, so data loaders that place batches on a device leave it on the CPU.

    Args:
        input_ids_BT: Token ids.
        labels_BT: Labels; -100 at the first token of each document, which nothing predicts.
        response_BT: Mask of the response positions.
        aligned_BT: Mask of the aligned positions.
        bounds: Row, first token, and one past the last token of each document (and of each stretch of padding).
        tokens: Number of tokens without padding.
    """

    input_ids_BT: Tensor
    labels_BT: Tensor
    response_BT: Tensor
    aligned_BT: Tensor
    bounds: tuple[tuple[int, int, int], ...]
    tokens: int


@dataclass(frozen=True)
class MicroPlan:
    """The plan of one micro-batch.

    Args:
        response_N: Response positions: those whose next token is trained.
        label_N: Next tokens of the response positions.
        aligned_N: Drawn aligned positions.
        prompt_N: Next tokens of the aligned positions.
        reference: Inputs of the reference pass, which serves the aligned and the compared positions in rising order;
            ``None`` where nothing is drawn.
        tokens: Number of tokens without padding.
        compared_N: Response positions of drawn sequences; ``None`` where no method compares responses with the base.
        weight_N: Weights of the response positions, above 0; ``None`` where all are equal.
    """

    response_N: Tensor
    label_N: Tensor
    aligned_N: Tensor
    prompt_N: Tensor
    reference: ReferenceBatch | None
    tokens: int
    compared_N: Tensor | None = None
    weight_N: Tensor | None = None


@dataclass(frozen=True)
class StepPlan:
    """The plan of one optimiser step. The counts are those of this rank until :meth:`with_totals`, then of all ranks.

    Args:
        micro: Plan of each micro-batch of this rank.
        n_response: Number of response tokens: labels other than -100 that a position of the same document predicts.
        n_aligned: Number of aligned tokens of *all* sequences, drawn or not.
        anywhere: Flag of each micro-batch that tells whether any rank runs its reference pass.
    """

    micro: tuple[MicroPlan, ...]
    n_response: int
    n_aligned: int
    anywhere: tuple[bool, ...]

    def counts(self) -> Tensor:
        """Return what ranks add up (int64): both divisors, then 0 or 1 for the reference pass of each micro-batch."""
        return torch.tensor([self.n_response, self.n_aligned, *map(int, self.anywhere)])

    def with_totals(self, totals: Tensor) -> StepPlan:
        """Return the same plan with the counts summed over ranks."""
        n_response, n_aligned, *drawn = totals.tolist()
        return replace(self, n_response=n_response, n_aligned=n_aligned, anywhere=tuple(d > 0 for d in drawn))


def document_ids(batch: Mapping[str, Any], pad_token_id: int | None = None) -> Tensor:
    """Return, B × T int64, the number of each token's document in its row; -1 for padding.

    A document starts where ``position_ids`` is 0 (packing, padding-free), or with the row where there are none. Padding
    is where ``attention_mask`` is 0. Without a mask, a document of nothing but ``pad_token_id`` that trains none is
    padding: axolotl numbers the padding of a packed row from 0, as if it were one more document. A mask of
    B × 1 × T × T says all of it by itself.
    """
    position_ids, mask = batch.get("position_ids"), batch.get("attention_mask")
    shape = batch["input_ids"].shape
    if mask is not None and mask.dim() == 4:
        return _documents_of_mask(mask.cpu())
    if position_ids is None:
        ids = torch.zeros(shape, dtype=torch.int64)
    else:
        ids = (position_ids.cpu().reshape(shape) == 0).to(torch.int64).cumsum(dim=1) - 1
    if mask is not None:
        return ids.masked_fill(mask.cpu().reshape(shape) == 0, -1)
    if pad_token_id is not None:
        blank_BT = (batch["input_ids"].cpu() == pad_token_id) & (batch["labels"].cpu() == IGNORED)
        for row, start, stop in list(_bounds(ids)):
            if blank_BT[row, start:stop].all():
                ids[row, start:stop] = -1
    return ids


def _documents_of_mask(mask_B1TT: Tensor) -> Tensor:
    """Return, B × T int64, the first token that each token sees, as the number of its document; -1 for padding.

    Args:
        mask_B1TT: Boolean (what is seen), or floating (0 where it is seen).

    Raises:
        ConfigError: If a token sees anything but its document up to itself.
    """
    seen_BTT = mask_B1TT[:, 0] if mask_B1TT.dtype == torch.bool else mask_B1TT[:, 0] == 0
    count_BT, first_BT = seen_BTT.sum(dim=-1), seen_BTT.to(torch.uint8).argmax(dim=-1)
    place_T = torch.arange(seen_BTT.shape[-1])
    padding_BT = count_BT == 0
    # Nothing after itself and a count that leaves no gap: the tokens from the first one to itself.
    whole_BT = (count_BT == place_T - first_BT + 1) & ~seen_BTT.triu(diagonal=1).any(dim=-1)
    before_BT = first_BT.roll(1, dims=-1)
    starts_BT = (first_BT == place_T) | (first_BT == before_BT) & (place_T > 0)
    if not bool((padding_BT | whole_BT & starts_BT).all()):
        raise ConfigError(
            "the four-dimensional attention mask lets a token see something else than its own document up to itself, "
            "which the reference pass would not do.",
            "use a collator that gives a mask of rows and tokens, or position_ids that begin anew at each document.",
        )
    return first_BT.masked_fill(padding_BT, -1)


def _document_starts(documents_BT: Tensor) -> Tensor:
    """Return a mask (B × T) of the first token of each document: nothing predicts it, so its label is ignored."""
    first_BT = torch.ones_like(documents_BT, dtype=torch.bool)
    first_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    return first_BT


def aligned_positions(labels_BT: Tensor, documents_BT: Tensor, align_boundary: bool = False) -> Tensor:
    """``labels[t] == labels[t + 1] == -100``, both real tokens of one document, as a mask (B × T).

    With ``align_boundary`` the boundary position is included: ``labels[t] == -100`` before a response token. It is a
    prompt token, but its logits predict the response's first token. The last token of an assistant turn before a user
    turn, padding, and the last token of a document are never aligned.
    """
    aligned_BT = torch.zeros_like(labels_BT, dtype=torch.bool)
    inside = (documents_BT[:, :-1] == documents_BT[:, 1:]) & (documents_BT[:, :-1] >= 0)
    prompt = labels_BT[:, :-1] == IGNORED
    if not align_boundary:
        prompt &= labels_BT[:, 1:] == IGNORED
    aligned_BT[:, :-1] = inside & prompt
    return aligned_BT


def draw(seed: int, step: int, tokens: Tensor, align_fraction: float) -> bool:
    """``hash(seed, step, tokens) / 2^64 < align_fraction``: whether a sequence is aligned in this step.

    The draw depends on nothing else, so it is the same under any split into micro-batches, ranks or packed rows.
    """
    if align_fraction >= 1.0:
        return True
    return int.from_bytes(_digest(f"{seed}:{step}", tokens, 8), "little") < align_fraction * 2**64


def draw_tokens(seed: int, step: int, tokens: Tensor, align_token_fraction: float) -> Tensor:
    """``philox(hash(seed, step, tokens))[t] / 2^64 < align_token_fraction`` for each token t of a drawn sequence.

    This mask (T bool) selects among the aligned tokens. It depends on the sequence and t alone, so the draw is the same
    under any split into micro-batches, ranks or packed rows.
    """
    if align_token_fraction >= 1.0:
        return torch.ones(len(tokens), dtype=torch.bool)
    # The key differs from that of the sequence's draw, since otherwise the two draws would be correlated.
    key = np.frombuffer(_digest(f"{seed}:{step}:tokens", tokens, 16), dtype=np.uint64)
    words_T = np.random.Philox(key=key).random_raw(len(tokens))
    return torch.from_numpy(words_T < np.uint64(align_token_fraction * 2**64))


def _digest(key: str, tokens: Tensor, size: int) -> bytes:
    values = tokens.to(torch.int64).numpy().tobytes()
    return hashlib.blake2b(values, digest_size=size, key=key.encode()).digest()


def read_batch(
    batch: Mapping[str, Any], align_boundary: bool = False, pad_token_id: int | None = None
) -> BatchPositions:
    """Return what the plan needs of a collated micro-batch: a function of the batch alone."""
    documents_BT = document_ids(batch, pad_token_id)
    labels_BT = batch["labels"].cpu().masked_fill(_document_starts(documents_BT), IGNORED)
    response_BT = torch.zeros_like(labels_BT, dtype=torch.bool)
    response_BT[:, :-1] = (labels_BT[:, 1:] != IGNORED) & (documents_BT[:, :-1] == documents_BT[:, 1:])
    response_BT[:, :-1] &= documents_BT[:, :-1] >= 0
    aligned_BT = aligned_positions(labels_BT, documents_BT, align_boundary)
    bounds = tuple(_bounds(documents_BT))
    input_ids_BT = batch["input_ids"].cpu()
    return BatchPositions(input_ids_BT, labels_BT, response_BT, aligned_BT, bounds, int((documents_BT >= 0).sum()))


def plan_step(
    batches: Sequence[Mapping[str, Any]],
    *,
    seed: int,
    step: int,
    align_fraction: float = 1.0,
    align_token_fraction: float = 1.0,
    align_boundary: bool = False,
    reference_layout: ReferenceLayout | None = None,
    align: bool = True,
    compare_response: bool = False,
    use_reference: bool = True,
    weigh: Callable[[Tensor, Tensor], Tensor] | None = None,
    pad_token_id: int | None = None,
    positions: Sequence[BatchPositions] | None = None,
) -> StepPlan:
    """Return the plan of one optimiser step on this rank.

    Args:
        batches: Collated micro-batches: ``input_ids``, ``labels``, and ``attention_mask`` or ``position_ids``.
        seed: Seed of the run.
        step: Number of optimiser steps done so far.
        align_fraction: Probability in (0, 1] that a sequence is drawn.
        align_token_fraction: Probability in (0, 1] that an aligned token of a drawn sequence is drawn.
        align_boundary: Whether the last prompt position before a response is aligned too.
        reference_layout: Layout of the reference pass; ``None`` for the layout of the micro-batch.
        align: Whether prompt positions are aligned at all.
        compare_response: Whether all response positions of drawn sequences are compared with the reference. With
            neither ``align`` nor ``compare_response`` there is no reference pass.
        use_reference: ``False`` where no term needs the reference: positions are drawn, and there is no pass.
        weigh: Function from a document's tokens and the positions of its trained ones to their weights. A token of
            weight 0 is not trained, and counts neither as response nor as prompt.
        pad_token_id: Id of the padding token, which tells padding where there is no attention mask; ``None`` where rows
            without a mask have none.
        positions: What :func:`read_batch` returned for each micro-batch with the same ``align_boundary`` and
            ``pad_token_id``; ``None`` to read them here.
    """
    micro: list[MicroPlan] = []
    n_response = n_aligned = 0
    found = positions or [read_batch(batch, align_boundary, pad_token_id) for batch in batches]
    for batch, read in zip(batches, found, strict=True):
        labels_BT, response_BT = read.labels_BT, read.response_BT
        weight_BT = None if weigh is None else _weights(read, weigh)
        if weight_BT is not None:
            response_BT = response_BT & (weight_BT > 0)
        response_N = response_BT.flatten().nonzero().squeeze(-1)
        n_response += response_N.numel()
        aligned_N, reference, compared_N = response_N[:0], None, None
        if align or compare_response:
            aligned_BT = read.aligned_BT & align
            n_aligned += int(aligned_BT.sum())
            fractions = (align_fraction, align_token_fraction)
            wanted = (aligned_BT, response_BT & compare_response)
            drawn, aligned_BT, compared_BT = _drawn_documents(read, *wanted, seed, step, *fractions)
            aligned_N = aligned_BT.flatten().nonzero().squeeze(-1)
            compared_N = compared_BT.flatten().nonzero().squeeze(-1) if compare_response else None
            if use_reference:
                on_host = {**batch, "input_ids": read.input_ids_BT}
                reference = reference_batch(on_host, drawn, reference_layout or ReferenceLayout())
        label_N = labels_BT.flatten()[response_N + 1]
        weight_N = None if weight_BT is None else weight_BT.flatten()[response_N]
        prompt_N = read.input_ids_BT.flatten()[aligned_N + 1]  # a document's last token is never aligned
        micro.append(MicroPlan(response_N, label_N, aligned_N, prompt_N, reference, read.tokens, compared_N, weight_N))
    return StepPlan(tuple(micro), n_response, n_aligned, tuple(m.reference is not None for m in micro))


def _drawn_documents(
    read: BatchPositions,
    aligned_BT: Tensor,
    compared_BT: Tensor,
    seed: int,
    step: int,
    fraction: float,
    token_fraction: float,
) -> tuple[list[DrawnDocument], Tensor, Tensor]:
    """Return the drawn documents, and masks (B × T) of their drawn aligned and their compared positions."""
    drawn: list[DrawnDocument] = []
    aligned_drawn_BT, compared_drawn_BT = torch.zeros_like(aligned_BT), torch.zeros_like(compared_BT)
    for row, start, stop in read.bounds:
        tokens, here = read.input_ids_BT[row, start:stop], (row, slice(start, stop))
        if not (aligned_BT[here] | compared_BT[here]).any() or not draw(seed, step, tokens, fraction):
            continue
        aligned_drawn_BT[here] = aligned_BT[here] & draw_tokens(seed, step, tokens, token_fraction)
        compared_drawn_BT[here] = compared_BT[here]
        positions = (aligned_drawn_BT[here] | compared_drawn_BT[here]).nonzero().squeeze(-1)
        if positions.numel():
            aligned = aligned_BT[here].nonzero().squeeze(-1) + start
            drawn.append(DrawnDocument(row, start, positions + start, stop, aligned))
    return drawn, aligned_drawn_BT, compared_drawn_BT


def _bounds(documents_BT: Tensor) -> Iterator[tuple[int, int, int]]:
    """Yield row, first token, and one past the last token of each document (and of each stretch of padding)."""
    for row, documents_T in enumerate(documents_BT):
        edges = torch.nonzero(documents_T[1:] != documents_T[:-1]).squeeze(-1) + 1
        for start, stop in pairwise([0, *edges.tolist(), len(documents_T)]):
            yield row, start, stop


def _weights(read: BatchPositions, weigh: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return, B × T float32, the weight of the token that each response position predicts; 0 elsewhere."""
    weight_BT = torch.zeros(read.response_BT.shape)
    for row, start, stop in read.bounds:
        positions = read.response_BT[row, start:stop].nonzero().squeeze(-1)
        if positions.numel():
            weight_BT[row, start + positions] = weigh(read.input_ids_BT[row, start:stop], positions + 1)
    return weight_BT
