"""The curriculum of the lab's base model, a small instruct model: what it is pretrained on, stage by stage.

Each stage has its share of the steps and its mixture of kinds of items.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from selfaug.lab.item import Item
from selfaug.lab.skills import SKILLS, editing, facts, reading
from selfaug.lab.words import Part
from selfaug.lab.world import World

__all__ = ["STAGES", "Stage", "draw_item", "sample_texts", "stage_at"]


@dataclass(frozen=True)
class Stage:
    """A stage of the pretraining.

    Args:
        share: Share of the steps.
        mixture: Relative weight of each kind of item; they need not sum to 1.
        drills: Share of examples that are drills of random tokens (:mod:`selfaug.lab.drills`) instead of items.
    """

    share: float
    mixture: Mapping[str, float]
    drills: float = 0.0


# Relative weights of the general skills in the last two stages, beside copying and questions about passages.
_GENERAL_WEIGHTS = {
    "following": 4.0,
    "facts": 3.0,
    "describe": 0.5,
    "arithmetic": 6.0,
    "editing": 6.0,
    "explaining": 1.5,
    "dialogue": 2.0,
}

STAGES = (
    # Copying is learnt first, on examples where nothing else helps: drills of random tokens, which teach a new model to
    # look back far faster than text does.
    Stage(0.04, {"copying": 1.0}, drills=0.9),
    # Then lookup in a text, with many questions about one passage, so that most tokens are targets, and a few drills.
    Stage(
        0.16,
        {"copying": 3.0, "read_one": 1.0, "read_alike": 3.0, "read_few": 3.0, "editing": 4.0, "dialogue": 1.0},
        drills=0.1,
    ),
    # Then all skills, with passages of all lengths.
    Stage(
        0.55, {**_GENERAL_WEIGHTS, "copying": 1.0, "read_few": 3.0, "read_many": 0.7, "read_long": 0.2, "reading": 3.0}
    ),
    # At the end, more single questions about a passage (`reading`), the form in which the skill is tested.
    Stage(0.25, {**_GENERAL_WEIGHTS, "read_few": 1.0, "read_many": 0.5, "read_long": 0.2, "reading": 6.0}),
)

# Shares of the questions about a passage that it does not answer, and that ask for a single word.
_UNANSWERABLE, _BRIEF = 0.15, 0.5


def _of_train_part(make: Callable[[random.Random, Part, World], Item]) -> Callable[[random.Random, World], Item]:
    """Return a skill's function for items of the part of the world that is trained on, none that is tested."""
    return lambda rng, world: make(rng, "train", world)


_KINDS: Mapping[str, Callable[[random.Random, World], Item]] = {
    **{name: _of_train_part(make) for name, make in SKILLS.items()},
    "describe": facts.describe,
    "copying": lambda rng, world: editing.copying(rng),
    "read_alike": lambda rng, world: reading.make_alike(rng, entities=rng.randint(2, 6), questions=6, brief=_BRIEF),
    # One, few, many: the number of entities in the passage. `count` is the number of facts about each.
    "read_one": lambda rng, world: reading.make_many(
        rng, entities=1, count=rng.randint(2, 4), questions=3, unanswerable=_UNANSWERABLE, brief=_BRIEF
    ),
    "read_few": lambda rng, world: reading.make_many(
        rng, entities=rng.randint(2, 4), count=rng.randint(2, 4), questions=6, unanswerable=_UNANSWERABLE, brief=_BRIEF
    ),
    "read_many": lambda rng, world: reading.make_many(
        rng, entities=rng.randint(5, 12), count=rng.randint(2, 3), questions=8, unanswerable=_UNANSWERABLE, brief=_BRIEF
    ),
    # So many entities that the prompt is long: it trains the positions of long prompts.
    "read_long": lambda rng, world: reading.make_many(
        rng,
        entities=rng.randint(12, 40),
        count=rng.randint(2, 4),
        questions=8,
        unanswerable=_UNANSWERABLE,
        brief=_BRIEF,
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


def draw_item(rng: random.Random, world: World, stage: Stage) -> Item:
    """Draw an item from a stage's mixture."""
    kind = rng.choices(list(stage.mixture), list(stage.mixture.values()))[0]
    return _KINDS[kind](rng, world)


def sample_texts(world: World, count: int, seed: int) -> list[str]:
    """Return conversations of all stages in equal shares as plain text, for training the tokenizer."""
    rng = random.Random(f"texts {seed}")
    items = (draw_item(rng, world, STAGES[i % len(STAGES)]) for i in range(count))
    return ["\n".join((*item.turns, item.answer)) for item in items]
