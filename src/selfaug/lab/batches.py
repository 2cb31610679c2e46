"""In which batches does the base read, and which of its tokens count how much?

Step ``n`` reads a batch that is a function of (seed, n) alone, so a training that was killed goes on to the same bit,
and any number of processes may make the batches. Answers weigh more than prompts: the base must learn to answer, and
prompts only well enough that its distribution over them means something.

Shapes: B conversations, T tokens of the longest.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from selfaug.lab import drills
from selfaug.lab.curriculum import Stage, draw, stage_at
from selfaug.lab.item import Item
from selfaug.lab.words import WORD
from selfaug.lab.world import World

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["PROMPT_WEIGHT", "Batch", "Example", "Order", "Words", "batches", "encode"]

PROMPT_WEIGHT = 0.1
"""Of a prompt token in the loss; an answer token weighs 1."""

Batch = tuple[Tensor, Tensor]
"""``ids_BT`` (int64), ``weights_BT`` (float32, of each token as a target); rows are padded at their end, weight 0."""

Example = tuple[list[int], list[float]]
"""Token ids of a conversation, and the weight of each as a target."""

_STEPS = 16  # made together, so that their conversations can be sorted by length and little is padded
_WAITING = 4  # such groups that each process has ready


@dataclass(frozen=True)
class Order(Dataset[list[Batch]]):
    """All batches of a training; item ``n`` holds those of steps ``16 n`` to ``16 n + 15``.

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
        words = Words(self.tokenizer)
        found: list[Example] = []
        total, wanted = 0, self.tokens * _STEPS
        while total < wanted:
            found.append(self._example(rng, stage, words))
            total += len(found[-1][0])
        found.sort(key=lambda example: len(example[0]))
        # One length each; long and short ones in turn, not rising.
        groups: list[list[Example]] = [[] for _ in range(_STEPS)]
        before = 0
        for example in found:
            groups[before * _STEPS // total].append(example)
            before += len(example[0])
        groups = [group for group in groups if group]
        rng.shuffle(groups)
        # One long conversation can be more than a step; then another stands in for the step that is left empty.
        return [_padded(groups[i % len(groups)], self.pad) for i in range(_STEPS)]

    def _example(self, rng: random.Random, stage: Stage, words: Words) -> Example:
        if rng.random() >= stage.drills:
            return encode(draw(rng, self.world, stage), words)
        ids, known = drills.draw(rng, self.pad + 1, self.tokenizer.get_vocab_size())
        return ids, [1.0 if each else PROMPT_WEIGHT for each in known]


class Words(dict[str, list[int]]):
    """Ids of each word, asked of the tokenizer once: it splits text into these words before anything else."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __missing__(self, word: str) -> list[int]:
        self[word] = self._tokenizer.encode(word, add_special_tokens=False).ids
        return self[word]


def encode(item: Item, words: Mapping[str, list[int]]) -> Example:
    """ChatML of a whole conversation: ids and weights. Every assistant turn and its end count as answers."""
    ids: list[int] = []
    weights: list[float] = []
    for number, turn in enumerate((*item.turns, item.answer)):
        header = ("<|im_start|>", ("user", "assistant")[number % 2], "\n")
        ids += [i for word in header for i in words[word]]
        weights += [PROMPT_WEIGHT] * (len(ids) - len(weights))
        ids += [i for word in WORD.findall(turn) for i in words[word]] + words["<|im_end|>"]
        weights += [1.0 if number % 2 else PROMPT_WEIGHT] * (len(ids) - len(weights))
        ids += words["\n"]
        weights += [PROMPT_WEIGHT] * (len(ids) - len(weights))
    return ids, weights


def _padded(examples: Sequence[Example], pad: int) -> Batch:
    longest = max(len(ids) for ids, _ in examples)
    ids_BT = np.full((len(examples), longest), pad, dtype=np.int64)
    weights_BT = np.zeros((len(examples), longest), dtype=np.float32)
    for row, (ids, weights) in enumerate(examples):
        ids_BT[row, : len(ids)] = ids
        weights_BT[row, : len(weights)] = weights
    return torch.from_numpy(ids_BT), torch.from_numpy(weights_BT)


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
