"""What is one test of a general skill, and does a text pass it?

An item is a conversation, the answer that the base is trained on, and a *check*: a JSON value that says what a right
answer must fulfil. Checks are data and not functions, so that an item can lie in a file and be scored anywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Item", "chat", "passes"]

Check = Mapping[str, Any]


@dataclass(frozen=True)
class Item:
    """One test.

    Args:
        skill: Its name.
        turns: What stands before the answer: user, assistant, user, ...
        answer: What the base is trained on; it passes its own check.
        check: Names of tests and their arguments; all must hold.
    """

    skill: str
    turns: tuple[str, ...]
    answer: str
    check: Check

    def messages(self) -> list[dict[str, str]]:
        """The prompt as chat messages."""
        return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(self.turns)]


def chat(turns: Sequence[str]) -> str:
    """ChatML of turns that alternate from the user, up to where the assistant is to answer."""
    text = "".join(f"<|im_start|>{('user', 'assistant')[i % 2]}\n{turn}<|im_end|>\n" for i, turn in enumerate(turns))
    return text + "<|im_start|>assistant\n"


def passes(check: Check, text: str) -> bool:
    """Whether ``text`` fulfils every test of a check.

    Tests by name: ``exact`` (one of these, apart from blank space at the ends), ``contains`` (each of these, case
    aside), ``upper`` (no small letter, some letter), ``start`` / ``end`` (first or last word, case and punctuation
    aside), ``without`` (none of these characters), ``lines`` (so many, each opening as given: ``dash`` or ``number``),
    ``json`` (an object with this key and a list of so many texts), ``members`` (so many different words of these and no
    other of them twice), ``times`` (this word so many times and nothing else), ``sentences`` (so many).

    Raises:
        KeyError: If a test is not known.
    """
    return all(_TESTS[name](argument, text.strip()) for name, argument in check.items())


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def _json(argument: Sequence[Any], text: str) -> bool:
    key, count = argument
    try:
        body: Any = json.loads(text)
    except ValueError:
        return False
    if not isinstance(body, dict):
        return False
    found: list[Any] | None = {str(name).lower(): entry for name, entry in body.items()}.get(key)
    return isinstance(found, list) and len(found) == count and all(isinstance(entry, str) for entry in found)


def _lines(argument: Sequence[Any], text: str) -> bool:
    style, count = argument
    lines = text.split("\n")
    openings = ["- "] * len(lines) if style == "dash" else [f"{i}. " for i in range(1, len(lines) + 1)]
    return len(lines) == count and all(a.startswith(b) and a != b for a, b in zip(lines, openings, strict=True))


def _members(argument: Sequence[Any], text: str) -> bool:
    pool, count = argument
    found = [word for word in _words(text) if word in pool]
    return bool(len(found) == count == len(set(found)))


_TESTS: Mapping[str, Callable[[Any, str], bool]] = {
    "exact": lambda accepted, text: text in accepted,
    "contains": lambda parts, text: all(part.lower() in text.lower() for part in parts),
    "upper": lambda wanted, text: text == text.upper() and text != text.lower(),
    "start": lambda word, text: _words(text)[:1] == [word.lower()],
    "end": lambda word, text: _words(text)[-1:] == [word.lower()],
    "without": lambda characters, text: bool(text) and not set(characters) & set(text),
    "lines": _lines,
    "json": _json,
    "members": _members,
    "times": lambda argument, text: _words(text) == [argument[0].lower()] * argument[1],
    "sentences": lambda count, text: len(re.findall(r"[.!?](?:\s|$)", text)) == count,
}
