"""The skill of adding a digit to a number and subtracting one from it."""

from __future__ import annotations

import random

from selfaug.lab.item import Item
from selfaug.lab.words import Part, in_test

__all__ = ["NAME", "make"]

NAME = "arithmetic"
_ASKS = ("What is {q}?", "Calculate {q}.", "How much is {q}?")


def make(rng: random.Random, part: Part) -> Item:
    """Make an item ``10..99 ± 1..9``; sums of the test part are never trained, in any phrasing."""
    while True:
        question = f"{rng.randint(10, 99)} {rng.choice('+-')} {rng.randint(1, 9)}"
        if in_test(question) == (part == "test"):
            break
    left, sign, right = question.split()
    result = int(left) + int(right) if sign == "+" else int(left) - int(right)
    answer = f"{question} = {result}"
    return Item(NAME, (rng.choice(_ASKS).format(q=question),), answer, {"end": str(result)})
