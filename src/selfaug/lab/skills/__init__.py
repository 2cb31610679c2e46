"""The general skills of the base, one file each: prompts, answers and checks."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from selfaug.lab.item import Item
from selfaug.lab.skills import arithmetic, dialogue, editing, explaining, facts, following, reading
from selfaug.lab.words import Part
from selfaug.lab.world import World

__all__ = ["SKILLS", "items"]

SKILLS: Mapping[str, Callable[[random.Random, Part, World], Item]] = {
    following.NAME: lambda rng, part, world: following.make(rng, part),
    facts.NAME: facts.make,
    arithmetic.NAME: lambda rng, part, world: arithmetic.make(rng, part),
    editing.NAME: lambda rng, part, world: editing.make(rng, part),
    explaining.NAME: lambda rng, part, world: explaining.make(rng, part),
    reading.NAME: lambda rng, part, world: reading.make(rng, part),
    dialogue.NAME: lambda rng, part, world: dialogue.make(rng, part),
}
"""Functions that make an item of a part, by the names of the skills."""


def items(skill: str, part: Part, count: int, world: World, seed: int = 0) -> list[Item]:
    """Return ``count`` different items of a skill, a function of the arguments.

    Raises:
        KeyError: If there is no such skill.
        ValueError: If the skill has fewer different items.
    """
    rng = random.Random(f"{skill} {part} {seed}")
    by_prompt: dict[tuple[str, ...], Item] = {}
    for _ in range(200 * count):
        if len(by_prompt) == count:
            break
        item = SKILLS[skill](rng, part, world)
        by_prompt.setdefault(item.turns, item)
    if len(by_prompt) < count:
        raise ValueError(f"{skill} has only {len(by_prompt)} different items in the {part} part, not {count}")
    return list(by_prompt.values())
