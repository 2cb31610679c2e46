"""The words and names of the lab, and their split into training and test part.

Names have two syllables. The part of a name is decided by its hash, whatever the seed, so training and test share no
entity, across all skills, tasks and sizes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal

__all__ = ["CATEGORIES", "KINDS", "WORD", "WORDS", "Part", "in_test", "names", "part_of"]

Part = Literal["train", "test"]

TEST_SHARE = 5
"""One in so many names, and prompts of skills without names, is in the test part."""

CATEGORIES: Mapping[str, tuple[str, ...]] = {
    "animals": ("goat", "cow", "hen", "horse", "fox", "owl", "bear", "hare", "duck", "wolf"),
    "fruits": ("apple", "pear", "plum", "fig", "lemon", "grape", "cherry", "melon", "peach", "lime"),
    "colours": ("red", "blue", "green", "white", "black", "grey", "brown", "pink", "gold", "silver"),
    "tools": ("hammer", "saw", "axe", "rope", "knife", "spade", "needle", "ladder", "brush", "lamp"),
    "jobs": ("baker", "smith", "farmer", "sailor", "weaver", "tailor", "miller", "guard", "nurse", "painter"),
    "foods": ("bread", "soup", "rice", "cheese", "fish", "beans", "honey", "cake", "stew", "butter"),
}
"""Words of each category, in the order in which the base learns to list them."""

WORDS: tuple[str, ...] = tuple(word for words in CATEGORIES.values() for word in words)

_PEOPLE = [
    "Mi",
    "Ra",
    "To",
    "Le",
    "Bo",
    "Sa",
    "Ke",
    "Du",
    "Fi",
    "Na",
    "Jo",
    "Pe",
    "Ti",
    "Lu",
    "Va",
    "Ro",
    "Ha",
    "El",
    "Or",
    "Is",
    "Ze",
    "Wi",
    "Gu",
    "Yo",
]
_PLACES = [
    "Tar",
    "Osk",
    "Bel",
    "Kor",
    "Lim",
    "Nor",
    "Pel",
    "Rud",
    "Sul",
    "Tov",
    "Vas",
    "Wim",
    "Gal",
    "Hed",
    "Jor",
    "Mar",
    "Dun",
    "Fen",
    "Cal",
    "Bro",
    "Asp",
    "Elm",
    "Ist",
    "Zan",
]
_SHIPS = ["Sea", "Star", "Moon", "Sun", "Storm", "Swift", "Gull", "Wave", "Cloud", "Dawn"]

KINDS: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "person": (_PEOPLE, ["ra", "lo", "dan", "sel", "mi", "na", "rik", "vin", "ta", "bel", "mon", "ke"]),
    "town": (_PLACES, ["ton", "burg", "wick", "mouth", "ford", "by", "stead", "holm"]),
    "river": (_PLACES, ["e", "a", "is", "el", "une", "ar"]),
    "land": (_PLACES, ["mark", "land", "ria", "dor", "via", "stan", "heim", "gard"]),
    "ship": (_SHIPS, ["wind", "hawk", "rose", "queen", "foam", "song", "light", "bird"]),
}
"""First and second syllables of the names of each kind of entity."""


_NAME = "(?:{})(?=(?:{})(?![A-Za-z']))".format(
    *("|".join(sorted({part for pair in KINDS.values() for part in pair[side]})) for side in (0, 1))
)

WORD = re.compile(rf"\d| ?{_NAME}| ?[A-Za-z']+| ?[^\sA-Za-z\d]+|\s+")
"""Pieces that the tokenizer never joins: single digits, words with the space before them, signs, white space, and both
syllables of a name, so that names of the test part are split like those that the base has learnt."""


def in_test(text: str) -> bool:
    """Whether a name or prompt is in the test part: one in five, by its hash alone."""
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % TEST_SHARE == 0


def part_of(text: str) -> Part:
    """Return the part of a name or prompt."""
    return "test" if in_test(text) else "train"


@cache
def names(kind: str, part: Part) -> tuple[str, ...]:
    """Return all names of a kind (a key of :data:`KINDS`) in one part, in a fixed order."""
    beginnings, endings = KINDS[kind]
    every = [first + last for first in beginnings for last in endings]
    return tuple(name for name in every if part_of(name) == part)
