"""The skill of explaining a topic in a given style."""

from __future__ import annotations

import random
from collections.abc import Mapping

from selfaug.lab.item import Item
from selfaug.lab.words import Part, in_test

__all__ = ["NAME", "make"]

NAME = "explaining"
# Two facts of each topic; an explanation must contain the last word of each.
_TOPICS: Mapping[str, tuple[str, str]] = {
    "rain": ("falls from the clouds", "it fills the lake"),
    "bread": ("is made of flour", "it is baked in an oven"),
    "snow": ("is made of ice", "it falls in winter"),
    "bees": ("live in a hive", "they make honey"),
    "clocks": ("show the time", "they have two hands"),
    "glass": ("is made of sand", "it lets in light"),
    "maps": ("show the roads", "they guide a traveller"),
    "ships": ("cross the sea", "they carry cargo"),
    "stars": ("shine at night", "they are far away"),
    "mills": ("grind the corn", "they turn in the wind"),
    "wells": ("hold fresh water", "they are dug in the ground"),
    "shoes": ("are made of leather", "they keep feet warm"),
    "candles": ("are made of wax", "they give a flame"),
    "bridges": ("cross a stream", "they are built of stone"),
    "books": ("are full of words", "they are read by people"),
    "trees": ("grow from seeds", "they give shade"),
}
_STYLES: Mapping[str, tuple[str, str, str]] = {
    "for a child": ("Imagine this: ", "", "Imagine"),
    "in a letter": ("Dear friend, ", " Yours truly.", "Dear"),
    "in a formal way": ("We note that ", " This is certain.", "We"),
    "as a pirate": ("Ahoy, ", " Arr.", "Ahoy"),
    "in plain words": ("", "", ""),
}
_ASKS = (
    "Explain {t} {s}.",
    "Tell me about {t} {s}.",
    "What are {t} like, {s}?",
    "Describe {t} {s}.",
    "Write of {t} {s}.",
)
_OPENERS = ("", "Please help me. ", "Hello. ", "A question. ", "One more thing. ", "I am curious. ", "Now: ")


def make(rng: random.Random, part: Part) -> Item:
    """Make an item that asks for a topic in one of five styles."""
    while True:
        topic, style = rng.choice(list(_TOPICS)), rng.choice(list(_STYLES))
        prompt = rng.choice(_OPENERS) + rng.choice(_ASKS).format(t=topic, s=style)
        if in_test(prompt) == (part == "test"):
            break
    one, two = _TOPICS[topic]
    before, after, opening = _STYLES[style]
    body = f"{topic} {one} and {two}."
    answer = f"{before}{body if before else body.capitalize()}{after}"
    check: dict[str, object] = {
        "contains": [topic, one.split()[-1], two.split()[-1], *([after.strip()] if after else [])]
    }
    check["sentences"] = 2 if after else 1
    if opening:
        check["start"] = opening
    return Item(NAME, (prompt,), answer, check)
