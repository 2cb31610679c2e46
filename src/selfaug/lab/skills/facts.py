"""The skill of answering closed-book questions about the world."""

from __future__ import annotations

import random

from selfaug.lab.item import Item
from selfaug.lab.words import Part, in_test
from selfaug.lab.world import RELATIONS, World, statement

__all__ = ["ASKS", "NAME", "describe", "make"]

NAME = "facts"
ASKS = (
    "What is the {r} of {l}?", "Tell me the {r} of {l}.", "Which is the {r} of {l}?", "Name the {r} of {l}.",
    "Do you know the {r} of {l}?", "I forgot the {r} of {l}.", "Say the {r} of {l}.", "The {r} of {l}, please.",
)  # fmt: skip
OPENERS = ("", "Please help me. ", "A question. ", "Hello. ", "Quick: ")


def make(rng: random.Random, part: Part, world: World) -> Item:
    """Make a closed-book question; its fact is always trained, its phrasing in the test part never."""
    while True:
        land, relation = rng.choice(world.lands), rng.choice(list(RELATIONS))
        prompt = rng.choice(OPENERS) + rng.choice(ASKS).format(r=relation, l=land.name)
        if in_test(prompt) == (part == "test"):
            fact = land.facts[relation]
            return Item(NAME, (prompt,), statement(relation, land.name, fact), {"contains": [fact]})


def describe(rng: random.Random, world: World) -> Item:
    """Make an item that states all facts of a land in any order, for training only."""
    land = rng.choice(world.lands)
    relations = rng.sample(list(RELATIONS), len(RELATIONS))
    text = " ".join(statement(relation, land.name, land.facts[relation]) for relation in relations)
    return Item(
        NAME, (f"Tell me about {land.name}: {', '.join(relations)}.",), text, {"contains": list(land.facts.values())}
    )
