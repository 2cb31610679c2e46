"""The fictional world that the base learns by heart: lands with a capital, a river, a ruler, a dish and an animal.

Everything is a function of the seed; there are no data files. :data:`RELATIONS` are the same for lands known by heart
(closed-book facts) and lands in documents (the RAG task).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selfaug.lab.words import CATEGORIES, Part, names

__all__ = ["RELATIONS", "SEED", "Land", "World", "make_land", "statement"]

SEED = 0
"""Seed of the world that the shipped models know."""

RELATIONS: Mapping[str, str] = {
    "capital": "town",
    "river": "river",
    "ruler": "person",
    "dish": "foods",
    "animal": "animals",
}
"""Relations of a land, and the kind of name or category of word of their values."""


@dataclass(frozen=True)
class Land:
    """A land, with its facts by relation."""

    name: str
    facts: Mapping[str, str]


@dataclass(frozen=True)
class World:
    """The lands that the base knows by heart; all names are in the training part."""

    lands: tuple[Land, ...]

    @classmethod
    def make(cls, seed: int = SEED, lands: int = 30) -> World:
        """Make a world of so many lands.

        Raises:
            ValueError: If there are fewer names than lands.
        """
        rng = random.Random(f"world {seed}")
        pool = names("land", "train")
        if not 0 < lands <= len(pool):
            raise ValueError(f"lands={lands}: the train part has {len(pool)} names of lands")
        return cls(tuple(make_land(rng, name, "train") for name in rng.sample(pool, lands)))

    def unknown(self, part: Part) -> tuple[str, ...]:
        """Return the names of lands that the base does not know."""
        known = {land.name for land in self.lands}
        return tuple(name for name in names("land", part) if name not in known)


def make_land(rng: random.Random, name: str, part: Part) -> Land:
    """Make a land of this name, with values drawn from names of ``part``."""
    return Land(name, {relation: value(rng, relation, part) for relation in RELATIONS})


def value(rng: random.Random, relation: str, part: Part) -> str:
    """Draw a value of a relation: a name of ``part``, or a word."""
    kind = RELATIONS[relation]
    pool: Any = CATEGORIES.get(kind) or names(kind, part)
    return str(rng.choice(pool))


def statement(relation: str, name: str, fact: str) -> str:
    """Return the sentence that states a fact."""
    return f"The {relation} of {name} is {fact}."
