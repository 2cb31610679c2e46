"""The training batches of the lab's base model, and the weights of their tokens.

The batch of a step depends on the settings, the seed and the step alone, so a resumed training reproduces the same
weights, and any number of processes may make the batches. Answers have a larger weight than prompts: the base must
learn to answer, and needs prompts only for a meaningful distribution over them.

Shapes: B conversations, T tokens of the longest one.
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
from selfaug.lab.curriculum import Stage, draw_item, stage_at
from selfaug.lab.item import Item
from selfaug.lab.words import WORD
from selfaug.lab.world import World

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["PROMPT_WEIGHT", "Batch", "Example", "Order", "Words", "batches", "encode"]

PROMPT_WEIGHT = 0.1
"""Weight of a prompt token in the loss; an answer token has weight 1."""

Batch = tuple[Tensor, Tensor]
"""``ids_BT`` (int64) and ``weights_BT`` (float32, of each token as a target); padding at the end has weight 0."""

Example = tuple[list[int], list[float]]
"""Token ids of a conversation, and the weight of each token as a target."""

_STEPS = 16  # steps whose conversations are sorted by length together, which saves padding
_WAITING = 4  # such groups that each process prefetches


@dataclass(frozen=True)
class Order(Dataset[list[Batch]]):
    """All batches of a training; item ``n`` holds those of steps ``16 n`` to ``16 n + 15``.

    Args:
        steps: Number of steps of the whole training, which sets the stage of a step.
        tokens: Approximate number of tokens of a batch.
        world: World of the conversations.
        tokenizer: Tokenizer of the model.
        pad: Token id of padding.
        seed: Seed of the order.
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
        examples: list[Example] = []
        total, wanted = 0, self.tokens * _STEPS
        while total < wanted:
            examples.append(self._example(rng, stage, words))
            total += len(examples[-1][0])
        examples.sort(key=lambda example: len(example[0]))
        # A batch has rows of similar length; batches are shuffled, so that lengths do not rise over the steps.
        groups: list[list[Example]] = [[] for _ in range(_STEPS)]
        before = 0
        for example in examples:
            groups[before * _STEPS // total].append(example)
            before += len(example[0])
        groups = [group for group in groups if group]
        rng.shuffle(groups)
        # A conversation longer than a step leaves a group empty; another group is then used twice.
        return [_padded(groups[i % len(groups)], self.pad) for i in range(_STEPS)]

    def _example(self, rng: random.Random, stage: Stage, words: Words) -> Example:
        if rng.random() >= stage.drills:
            return encode(draw_item(rng, self.world, stage), words)
        ids, known = drills.draw(rng, self.pad + 1, self.tokenizer.get_vocab_size())
        return ids, [1.0 if each else PROMPT_WEIGHT for each in known]


class Words(dict[str, list[int]]):
    """Cache of the token ids of words; the tokenizer splits text into these words before anything else."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __missing__(self, word: str) -> list[int]:
        self[word] = self._tokenizer.encode(word, add_special_tokens=False).ids
        return self[word]


def encode(item: Item, words: Mapping[str, list[int]]) -> Example:
    """Encode a whole conversation in ChatML; every assistant turn counts as an answer, its end token included."""
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
    """Yield the batch of each step from ``first`` on, made by ``workers`` processes besides this one.

    A step's batch depends on neither.
    """
    loader = DataLoader(
        order,
        batch_size=None,
        sampler=range(first // _STEPS, len(order)),
        num_workers=workers,
        prefetch_factor=_WAITING if workers else None,
    )
    for number, group in zip(range(first // _STEPS, len(order)), loader, strict=True):
        for step, batch in enumerate(group, start=number * _STEPS):
            if first <= step < order.steps:
                yield batch
