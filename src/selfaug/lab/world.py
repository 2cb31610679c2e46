"""What is true in the world that the base learns by heart?

Lands with a capital, a river, a ruler, a dish and an animal. Everything is a function of the seed; there are no data
files. What a text may say about an entity is in :data:`RELATIONS`, the same for lands known by heart (closed-book
facts) and lands met in documents (the RAG task).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selfaug.lab.words import CATEGORIES, Part, names

__all__ = ["RELATIONS", "SEED", "Land", "World", "make_land", "statement"]

SEED = 0
"""Of the world that the shipped models know."""

RELATIONS: Mapping[str, str] = {
    "capital": "town",
    "river": "river",
    "ruler": "person",
    "dish": "foods",
    "animal": "animals",
}
"""What is told of a land, and the kind of name or the category of word that it is."""


@dataclass(frozen=True)
class Land:
    """A land and what is true of it, by relation."""

    name: str
    facts: Mapping[str, str]


@dataclass(frozen=True)
class World:
    """The lands that the base knows by heart: names of the train part alone."""

    lands: tuple[Land, ...]

    @classmethod
    def make(cls, seed: int = SEED, lands: int = 30) -> World:
        """A world of so many lands.

        Raises:
            ValueError: If there are fewer names than lands.
        """
        rng = random.Random(f"world {seed}")
        pool = names("land", "train")
        if not 0 < lands <= len(pool):
            raise ValueError(f"lands={lands}: the train part has {len(pool)} names of lands")
        return cls(tuple(make_land(rng, name, "train") for name in rng.sample(pool, lands)))

    def unknown(self, part: Part) -> tuple[str, ...]:
        """Names of lands that the base was never told of."""
        known = {land.name for land in self.lands}
        return tuple(name for name in names("land", part) if name not in known)


def make_land(rng: random.Random, name: str, part: Part) -> Land:
    """A land of this name, its values drawn from names of ``part``."""
    return Land(name, {relation: value(rng, relation, part) for relation in RELATIONS})


def value(rng: random.Random, relation: str, part: Part) -> str:
    """A value of a relation: a name of ``part``, or a word."""
    kind = RELATIONS[relation]
    pool: Any = CATEGORIES.get(kind) or names(kind, part)
    return str(rng.choice(pool))


def statement(relation: str, name: str, told: str) -> str:
    """The sentence that tells a fact."""
    return f"The {relation} of {name} is {told}."
