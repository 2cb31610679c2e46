"""The skill of following instructions that a program can verify, as in IFEval (arXiv 2311.07911)."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

from selfaug.lab.item import Item
from selfaug.lab.words import CATEGORIES, WORDS, Part, in_test

__all__ = ["NAME", "make"]

NAME = "following"
_OPENINGS = ("Surely", "Gladly", "Listen", "Behold", "Perhaps", "Today")
_ENDINGS = ("thanks", "indeed", "always", "done", "friend", "enough")
_NUMBERS = {2: "two", 3: "three", 4: "four"}
_ASKS = ("Name {n} {c}.", "Tell me {n} {c}.", "Give me {n} {c}.", "Write down {n} {c}.")
_SHAPES = ("plain", "dash", "number", "json", "and")
_SAYS = {
    "plain": ("",),
    "dash": ("Use a list with dashes.", "Put a dash before each."),
    "number": ("Use a numbered list.", "Number them."),
    "json": ("Answer as JSON.", "Use JSON."),
    "and": ("Do not use commas.", "Use no commas."),
}


def make(rng: random.Random, part: Part) -> Item:
    """Make a request with one or two instructions: list format, capitals, first or last word, order, count."""
    while True:
        item = rng.choices((_listing, _repeat, _order), (8, 1, 1))[0](rng)
        if in_test(item.turns[0]) == (part == "test"):
            return item


def _listing(rng: random.Random) -> Item:
    category, count = rng.choice(list(CATEGORIES)), rng.choice(list(_NUMBERS))
    shape = rng.choice(_SHAPES)
    extras = [name for name in ("upper", "start", "end") if not (shape == "json" and name != "upper")]
    wanted = rng.sample(extras, 1) if shape == "plain" or rng.random() < 0.5 else []
    pool = CATEGORIES[category]
    first = rng.randrange(len(pool))
    words: list[str] = [pool[(first + i) % len(pool)] for i in range(count)]
    says = [rng.choice(_SAYS[shape])]
    check: dict[str, object] = {"members": [list(pool), count]}
    body = _shaped(shape, category, words, check)
    if "start" in wanted:
        opening = rng.choice(_OPENINGS)
        says.append(f"Begin with the word {opening}.")
        check["start"] = opening
        body = f"{opening}\n{body}" if shape in ("dash", "number") else f"{opening} {body}"
    if "end" in wanted:
        ending = rng.choice(_ENDINGS)
        says.append(f"End with the word {ending}.")
        check["end"] = ending
        body = f"{body}\n{ending}" if shape in ("dash", "number") else f"{body} {ending}"
    if shape in ("dash", "number") and not {"start", "end"} & set(wanted):
        check["lines"] = [shape, count]
    elif shape in ("dash", "number"):  # the list has other lines around it
        check["contains"] = ["\n- "] if shape == "dash" else [f"{number}. " for number in range(1, count + 1)]
    if "upper" in wanted:
        says.append("Use capital letters.")
        check["upper"] = True
        body = body.upper()
    prompt = " ".join([rng.choice(_ASKS).format(n=_NUMBERS[count], c=category), *filter(None, says)])
    return Item(NAME, (prompt,), body, check)


def _shaped(shape: str, category: str, words: Sequence[str], check: dict[str, object]) -> str:
    if shape == "dash":
        return "\n".join(f"- {word}" for word in words)
    if shape == "number":
        return "\n".join(f"{i}. {word}" for i, word in enumerate(words, start=1))
    if shape == "json":
        check["json"] = [category, len(words)]
        return json.dumps({category: list(words)})
    if shape == "and":
        check["without"] = ","
        return " and ".join(words)
    return ", ".join(words)


def _repeat(rng: random.Random) -> Item:
    word, count = rng.choice(WORDS), rng.choice((2, 3, 4, 5))
    prompt = rng.choice(("Write the word {w} {n} times.", "Say {w} {n} times.")).format(w=word, n=count)
    return Item(NAME, (prompt,), " ".join([word] * count), {"times": [word, count]})


def _order(rng: random.Random) -> Item:
    words = rng.sample(WORDS, rng.choice((2, 3)))
    prompt = f"Write these words in reverse order: {', '.join(words)}"
    answer = ", ".join(reversed(words))
    return Item(NAME, (prompt,), answer, {"exact": [answer]})
