"""Does the model still know in the second turn what was said in the first?"""

from __future__ import annotations

import random

from selfaug.lab.item import Item
from selfaug.lab.words import CATEGORIES, WORDS, Part, in_test, names

__all__ = ["NAME", "make"]

NAME = "dialogue"


def make(rng: random.Random, part: Part) -> Item:
    """A name or a liking that is asked for again, or an answer to be told once more in capital letters."""
    return rng.choice((_name, _liking, _again))(rng, part)


def _name(rng: random.Random, part: Part) -> Item:
    name = rng.choice(names("person", part))
    first = rng.choice(("My name is {n}.", "I am called {n}.", "Hello, my name is {n}.")).format(n=name)
    asks = rng.choice(("What is my name?", "Do you know my name?", "Say my name."))
    return Item(NAME, (first, f"Nice to meet you, {name}.", asks), f"Your name is {name}.", {"contains": [name]})


def _liking(rng: random.Random, part: Part) -> Item:
    while True:
        thing = rng.choice(WORDS)
        asks = rng.choice(("What do I like?", "Do you know what I like?", "Say what I like."))
        first = rng.choice(("I like the {w}.", "My favourite is the {w}.", "Best of all I like the {w}.")).format(
            w=thing
        )
        if in_test(first + asks) == (part == "test"):
            return Item(NAME, (first, "Good to know.", asks), f"You like the {thing}.", {"contains": [thing]})


def _again(rng: random.Random, part: Part) -> Item:
    while True:
        category = rng.choice(list(CATEGORIES))
        pool = CATEGORIES[category]
        start = rng.randrange(len(pool))
        told = ", ".join(pool[(start + i) % len(pool)] for i in range(2))
        asks = rng.choice(("Again in capital letters.", "Now in capital letters.", "Once more in capital letters."))
        if in_test(told + asks) == (part == "test"):
            return Item(NAME, (f"Name two {category}.", told, asks), told.upper(), {"exact": [told.upper()]})
