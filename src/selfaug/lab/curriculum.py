"""What does the base read, in which order, and which of its tokens count how much?

A stage is a mixture of kinds of items and a share of the steps. Step ``n`` reads a batch that is a function of (seed,
n) alone, so a training that was killed goes on to the same bit. Answers weigh more than prompts: the base must learn to
answer, and prompts only well enough that its distribution over them means something.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from selfaug.lab.item import Item
from selfaug.lab.skills import SKILLS, editing, facts, reading
from selfaug.lab.words import Part
from selfaug.lab.world import World

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["PROMPT_WEIGHT", "STAGES", "Example", "Stage", "batches", "sample_texts", "stage_at"]

PROMPT_WEIGHT = 0.1
"""Of a prompt token in the loss; an answer token weighs 1."""

_LENGTH_GROUPS = 4  # a batch is cut out of so many times its size, sorted by length, so that little is padded


@dataclass(frozen=True)
class Stage:
    """A part of the training.

    Args:
        share: Of the steps.
        mixture: Weight of each kind of item.
    """

    share: float
    mixture: Mapping[str, float]


_GENERAL = {
    "following": 3.0,
    "facts": 2.0,
    "describe": 0.5,
    "arithmetic": 2.0,
    "editing": 2.0,
    "explaining": 1.0,
    "dialogue": 1.0,
}

STAGES = (
    # Copying comes first, then looking things up, which takes longest; with many questions about a passage most tokens
    # count.
    Stage(0.10, {"copying": 3.0, "read_one": 2.0}),
    Stage(0.25, {"copying": 1.0, "read_one": 2.0, "read_few": 5.0, "editing": 1.0, "dialogue": 0.5}),
    Stage(0.45, {**_GENERAL, "read_few": 4.0, "read_many": 1.5, "reading": 2.0}),
    Stage(0.20, {**_GENERAL, "read_few": 2.0, "read_many": 1.0, "reading": 4.0}),
)


@dataclass(frozen=True)
class Example:
    """Token ids of a conversation, and the weight of each as a target."""

    input_ids: list[int]
    weights: list[float]


def _trained(make: Callable[[random.Random, Part, World], Item]) -> Callable[[random.Random, World], Item]:
    return lambda rng, world: make(rng, "train", world)


_KINDS: Mapping[str, Callable[[random.Random, World], Item]] = {
    **{name: _trained(make) for name, make in SKILLS.items()},
    "describe": facts.describe,
    "copying": lambda rng, world: editing.copying(rng),
    "read_one": lambda rng, world: reading.make_many(rng, 1, rng.randint(2, 4), 3, 0.1, 0.4),
    "read_few": lambda rng, world: reading.make_many(rng, rng.randint(2, 4), rng.randint(2, 4), 6, 0.1, 0.4),
    "read_many": lambda rng, world: reading.make_many(rng, rng.randint(5, 12), rng.randint(2, 3), 8, 0.1, 0.4),
}


def stage_at(step: int, steps: int) -> Stage:
    """The stage of a step out of so many."""
    end = 0.0
    for stage in STAGES:
        end += stage.share * steps
        if step < end:
            return stage
    return STAGES[-1]


def _item(rng: random.Random, world: World, stage: Stage) -> Item:
    kind = rng.choices(list(stage.mixture), list(stage.mixture.values()))[0]
    return _KINDS[kind](rng, world)


def sample_texts(world: World, count: int, seed: int) -> list[str]:
    """Conversations as plain text, all stages alike: what the tokenizer is made from."""
    rng = random.Random(f"texts {seed}")
    items = (_item(rng, world, STAGES[i % len(STAGES)]) for i in range(count))
    return ["\n".join((*item.turns, item.answer)) for item in items]


def encode(item: Item, tokenizer: Tokenizer) -> Example:
    """ChatML of the whole conversation; every assistant turn and its end count as answers."""
    pieces: list[str] = []
    weights: list[float] = []
    for number, turn in enumerate((*item.turns, item.answer)):
        role = ("user", "assistant")[number % 2]
        pieces += [f"<|im_start|>{role}\n", f"{turn}<|im_end|>", "\n"]
        weights += [PROMPT_WEIGHT, 1.0 if number % 2 else PROMPT_WEIGHT, PROMPT_WEIGHT]
    ids = [encoding.ids for encoding in tokenizer.encode_batch(pieces, add_special_tokens=False)]
    flat = [token for piece in ids for token in piece]
    return Example(flat, [weight for piece, weight in zip(ids, weights, strict=True) for _ in piece])


def batches(
    first: int, steps: int, tokens: int, world: World, tokenizer: Tokenizer, seed: int
) -> Iterator[list[Example]]:
    """The batch of each step from ``first`` on: conversations of similar length, about so many tokens when padded.

    A step's batch is the same wherever the training is gone on from.
    """
    groups: list[list[Example]] = []
    for step in range(first, steps):
        if not groups or step % _LENGTH_GROUPS == 0:
            groups = _groups(step // _LENGTH_GROUPS, steps, tokens, world, tokenizer, seed)
        yield groups[step % _LENGTH_GROUPS % len(groups)]


def _groups(number: int, steps: int, tokens: int, world: World, tokenizer: Tokenizer, seed: int) -> list[list[Example]]:
    """The batches of ``_LENGTH_GROUPS`` steps, each of one length; long and short ones in turn, not rising."""
    rng = random.Random(f"batch {seed} {number}")
    stage = stage_at(number * _LENGTH_GROUPS, steps)
    found: list[Example] = []
    while sum(len(example.input_ids) for example in found) < tokens * _LENGTH_GROUPS:
        found.append(encode(_item(rng, world, stage), tokenizer))
    found.sort(key=lambda example: len(example.input_ids))
    groups: list[list[Example]] = [[]]
    total = sum(len(example.input_ids) for example in found)
    filled = 0
    for example in found:
        if filled >= len(groups) * total / _LENGTH_GROUPS and len(groups) < _LENGTH_GROUPS:
            groups.append([])
        groups[-1].append(example)
        filled += len(example.input_ids)
    rng.shuffle(groups)
    return groups
