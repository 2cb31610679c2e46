"""The curriculum of the lab's base: stages with a share of the steps and a mixture of kinds of items."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from selfaug.lab.item import Item
from selfaug.lab.skills import SKILLS, editing, facts, reading
from selfaug.lab.words import Part
from selfaug.lab.world import World

__all__ = ["STAGES", "Stage", "draw", "sample_texts", "stage_at"]


@dataclass(frozen=True)
class Stage:
    """A stage of the training.

    Args:
        share: Share of the steps.
        mixture: Weight of each kind of item.
        drills: Share of examples that are drills of random tokens (:mod:`selfaug.lab.drills`) instead of items.
    """

    share: float
    mixture: Mapping[str, float]
    drills: float = 0.0


_GENERAL = {
    "following": 4.0,
    "facts": 3.0,
    "describe": 0.5,
    "arithmetic": 6.0,
    "editing": 6.0,
    "explaining": 1.5,
    "dialogue": 2.0,
}

STAGES = (
    # Copying is learnt first, on examples where nothing else helps; then lookup in a text, with many questions about
    # one passage, so that most tokens are targets.
    Stage(0.04, {"copying": 1.0}, drills=0.9),
    Stage(
        0.16,
        {"copying": 3.0, "read_one": 1.0, "read_alike": 3.0, "read_few": 3.0, "editing": 4.0, "dialogue": 1.0},
        drills=0.1,
    ),
    Stage(0.55, {**_GENERAL, "copying": 1.0, "read_few": 3.0, "read_many": 0.7, "read_long": 0.2, "reading": 3.0}),
    Stage(0.25, {**_GENERAL, "read_few": 1.0, "read_many": 0.5, "read_long": 0.2, "reading": 6.0}),
)

_UNANSWERABLE, _BRIEF = 0.15, 0.5  # shares of the questions about a passage


def _trained(make: Callable[[random.Random, Part, World], Item]) -> Callable[[random.Random, World], Item]:
    return lambda rng, world: make(rng, "train", world)


_KINDS: Mapping[str, Callable[[random.Random, World], Item]] = {
    **{name: _trained(make) for name, make in SKILLS.items()},
    "describe": facts.describe,
    "copying": lambda rng, world: editing.copying(rng),
    "read_alike": lambda rng, world: reading.make_alike(rng, rng.randint(2, 6), 6, _BRIEF),
    "read_one": lambda rng, world: reading.make_many(rng, 1, rng.randint(2, 4), 3, _UNANSWERABLE, _BRIEF),
    "read_few": lambda rng, world: reading.make_many(
        rng, rng.randint(2, 4), rng.randint(2, 4), 6, _UNANSWERABLE, _BRIEF
    ),
    "read_many": lambda rng, world: reading.make_many(
        rng, rng.randint(5, 12), rng.randint(2, 3), 8, _UNANSWERABLE, _BRIEF
    ),
    # Trains the positions of long prompts.
    "read_long": lambda rng, world: reading.make_many(
        rng, rng.randint(12, 40), rng.randint(2, 4), 8, _UNANSWERABLE, _BRIEF
    ),
}


def stage_at(step: int, steps: int) -> Stage:
    """Return the stage of a step."""
    end = 0.0
    for stage in STAGES:
        end += stage.share * steps
        if step < end:
            return stage
    return STAGES[-1]


def draw(rng: random.Random, world: World, stage: Stage) -> Item:
    """Draw an item from a stage's mixture."""
    kind = rng.choices(list(stage.mixture), list(stage.mixture.values()))[0]
    return _KINDS[kind](rng, world)


def sample_texts(world: World, count: int, seed: int) -> list[str]:
    """Return conversations of all stages in equal shares as plain text, for training the tokenizer."""
    rng = random.Random(f"texts {seed}")
    items = (draw(rng, world, STAGES[i % len(STAGES)]) for i in range(count))
    return ["\n".join((*item.turns, item.answer)) for item in items]
