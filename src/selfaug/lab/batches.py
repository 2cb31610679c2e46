"""In which batches does the base read, and which of its tokens count how much?

Step ``n`` reads a batch that is a function of (seed, n) alone, so a training that was killed goes on to the same bit,
and any number of processes may make the batches. Answers weigh more than prompts: the base must learn to answer, and
prompts only well enough that its distribution over them means something.

Shapes: B conversations, T tokens of the longest.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from selfaug.lab.curriculum import draw, stage_at
from selfaug.lab.item import Item
from selfaug.lab.world import World

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["PROMPT_WEIGHT", "Batch", "Order", "batches", "encode"]

PROMPT_WEIGHT = 0.1
"""Of a prompt token in the loss; an answer token weighs 1."""

Batch = tuple[Tensor, Tensor]
"""``ids_BT`` (int64), ``weights_BT`` (float32, of each token as a target); rows are padded at their end, weight 0."""

_STEPS = 4  # made together, so that their conversations can be sorted by length and little is padded
_AT_ONCE = 64  # conversations that are drawn and encoded together
_WAITING = 16  # batches of steps that each process has ready


@dataclass(frozen=True)
class Order(Dataset[list[Batch]]):
    """All batches of a training; item ``n`` holds those of steps ``4 n`` to ``4 n + 3``.

    Args:
        steps: Of the whole training: they decide which stage a step is in.
        tokens: Of a batch, about.
        world: What is true.
        tokenizer: What the text becomes.
        pad: Token id that fills up rows.
        seed: Of the order.
    """

    steps: int
    tokens: int
    world: World
    tokenizer: Tokenizer
    pad: int
    seed: int

    def __len__(self) -> int:
        return (self.steps + _STEPS - 1) // _STEPS

    def __getitem__(self, number: int) -> list[Batch]:
        rng = random.Random(f"batch {self.seed} {number}")
        stage = stage_at(number * _STEPS, self.steps)
        found: list[tuple[list[int], list[float]]] = []
        wanted = self.tokens * _STEPS
        while wanted > 0:
            found += encode([draw(rng, self.world, stage) for _ in range(_AT_ONCE)], self.tokenizer)
            wanted -= sum(len(ids) for ids, _ in found[-_AT_ONCE:])
        found.sort(key=lambda example: len(example[0]))
        # One length each; long and short ones in turn, not rising.
        ends = [sum(len(ids) for ids, _ in found[: i + 1]) for i in range(len(found))]
        groups: list[list[tuple[list[int], list[float]]]] = [[] for _ in range(_STEPS)]
        for example, end in zip(found, ends, strict=True):
            groups[min(_STEPS - 1, (end - len(example[0])) * _STEPS // ends[-1])].append(example)
        rng.shuffle(groups)
        return [_padded(group, self.pad) for group in groups]


def encode(items: Sequence[Item], tokenizer: Tokenizer) -> list[tuple[list[int], list[float]]]:
    """ChatML of whole conversations: ids and weights. Every assistant turn and its end count as answers."""
    pieces: list[str] = []
    weights: list[float] = []
    counts: list[int] = []
    for item in items:
        before = len(pieces)
        for number, turn in enumerate((*item.turns, item.answer)):
            pieces += [f"<|im_start|>{('user', 'assistant')[number % 2]}\n", f"{turn}<|im_end|>", "\n"]
            weights += [PROMPT_WEIGHT, 1.0 if number % 2 else PROMPT_WEIGHT, PROMPT_WEIGHT]
        counts.append(len(pieces) - before)
    ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(pieces, add_special_tokens=False)]
    found, first = [], 0
    for count in counts:
        one = range(first, first + count)
        found.append(([i for n in one for i in ids[n]], [w for n in one for w in [weights[n]] * len(ids[n])]))
        first += count
    return found


def _padded(examples: Sequence[tuple[list[int], list[float]]], pad: int) -> Batch:
    longest = max((len(ids) for ids, _ in examples), default=0)
    ids_BT = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in examples], dtype=torch.long)
    weights_BT = torch.tensor([weights + [0.0] * (longest - len(weights)) for _, weights in examples])
    return ids_BT, weights_BT


def batches(order: Order, first: int, workers: int = 0) -> Iterator[Batch]:
    """The batch of each step from ``first`` on: the same wherever the training is gone on from, and by how many
    processes besides this one they are made.
    """
    loader = DataLoader(
        order,
        batch_size=None,
        sampler=range(first // _STEPS, len(order)),
        num_workers=workers,
        prefetch_factor=_WAITING if workers else None,
    )
    for number, found in zip(range(first // _STEPS, len(order)), loader, strict=True):
        for step, batch in enumerate(found, start=number * _STEPS):
            if first <= step < order.steps:
                yield batch
