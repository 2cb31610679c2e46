"""The skill of changing a text as instructed and leaving the rest as it is."""

from __future__ import annotations

import random

from selfaug.lab.item import Item
from selfaug.lab.words import KINDS, WORDS, Part, in_test, names

__all__ = ["NAME", "copying", "make"]

NAME = "editing"


def make(rng: random.Random, part: Part) -> Item:
    """Make an item with three to five words: replace, remove or add a word, or write them in capital letters."""
    while True:
        words = rng.sample(WORDS, rng.randint(3, 5))
        prompt, answer = rng.choice((_replace, _remove, _append, _prepend, _upper))(rng, words)
        if in_test(prompt) == (part == "test"):
            return Item(NAME, (prompt,), answer, {"exact": [answer]})


def _text(words: list[str]) -> str:
    return " ".join(words)


def _replace(rng: random.Random, words: list[str]) -> tuple[str, str]:
    old, new = rng.choice(words), rng.choice([w for w in WORDS if w not in words])
    return f"Replace {old} with {new}: {_text(words)}", _text([new if w == old else w for w in words])


def _remove(rng: random.Random, words: list[str]) -> tuple[str, str]:
    gone = rng.choice(words)
    return f"Remove the word {gone}: {_text(words)}", _text([w for w in words if w != gone])


def _append(rng: random.Random, words: list[str]) -> tuple[str, str]:
    new = rng.choice(WORDS)
    return f"Add {new} at the end: {_text(words)}", _text([*words, new])


def _prepend(rng: random.Random, words: list[str]) -> tuple[str, str]:
    new = rng.choice(WORDS)
    return f"Add {new} at the start: {_text(words)}", _text([new, *words])


def _upper(rng: random.Random, words: list[str]) -> tuple[str, str]:
    return f"Write in capital letters: {_text(words)}", _text(words).upper()


def copying(rng: random.Random) -> Item:
    """Make an item that copies words and names, the simplest use of a prompt, for training only."""
    # Names of lands are left out, since those of the RAG task must be new.
    pool = [*WORDS, *names(rng.choice([kind for kind in KINDS if kind != "land"]), "train")]
    text = " ".join(rng.choice(pool) for _ in range(rng.randint(4, 20)))
    return Item(NAME, (f"Write this again: {text}",), text, {"exact": [text]})
