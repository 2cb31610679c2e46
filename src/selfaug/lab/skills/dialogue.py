"""The skill of using the first turn of a dialogue in the second."""

from __future__ import annotations

import random

from selfaug.lab.item import Item
from selfaug.lab.words import CATEGORIES, WORDS, Part, in_test, names

__all__ = ["NAME", "make"]

NAME = "dialogue"


def make(rng: random.Random, part: Part) -> Item:
    """Make an item that asks for a name or a liking again, or for the last answer in capital letters."""
    return rng.choice((_name, _liking, _again))(rng, part)


def _name(rng: random.Random, part: Part) -> Item:
    name = rng.choice(names("person", part))
    first = rng.choice(("My name is {n}.", "I am called {n}.", "Hello, my name is {n}.")).format(n=name)
    question = rng.choice(("What is my name?", "Do you know my name?", "Say my name."))
    return Item(NAME, (first, f"Nice to meet you, {name}.", question), f"Your name is {name}.", {"contains": [name]})


def _liking(rng: random.Random, part: Part) -> Item:
    while True:
        thing = rng.choice(WORDS)
        question = rng.choice(("What do I like?", "Do you know what I like?", "Say what I like."))
        first = rng.choice(("I like the {w}.", "My favourite is the {w}.", "Best of all I like the {w}.")).format(
            w=thing
        )
        if in_test(first + question) == (part == "test"):
            return Item(NAME, (first, "Good to know.", question), f"You like the {thing}.", {"contains": [thing]})


def _again(rng: random.Random, part: Part) -> Item:
    while True:
        category = rng.choice(list(CATEGORIES))
        pool = CATEGORIES[category]
        start = rng.randrange(len(pool))
        listed = ", ".join(pool[(start + i) % len(pool)] for i in range(2))
        question = rng.choice(("Again in capital letters.", "Now in capital letters.", "Once more in capital letters."))
        if in_test(listed + question) == (part == "test"):
            return Item(NAME, (f"Name two {category}.", listed, question), listed.upper(), {"exact": [listed.upper()]})
