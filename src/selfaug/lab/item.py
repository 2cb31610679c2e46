"""Items: the tests of general skills, and the checks of answers.

An item is a conversation, the answer that the base is trained on, and a *check*: a JSON value with the conditions of a
correct answer. Checks are data instead of functions, so that items can be stored in files and scored anywhere.
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
    """One test of a skill.

    Args:
        skill: Name of the skill.
        turns: Turns before the answer: user, assistant, user, ...
        answer: Answer that the base is trained on; it passes the check.
        check: Names of conditions and their arguments; all must hold.
    """

    skill: str
    turns: tuple[str, ...]
    answer: str
    check: Check

    def messages(self) -> list[dict[str, str]]:
        """Return the prompt as chat messages."""
        return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(self.turns)]


def chat(turns: Sequence[str]) -> str:
    """Return the ChatML of alternating turns, user first, up to the start of the assistant's answer."""
    text = "".join(f"<|im_start|>{('user', 'assistant')[i % 2]}\n{turn}<|im_end|>\n" for i, turn in enumerate(turns))
    return text + "<|im_start|>assistant\n"


def passes(check: Check, text: str) -> bool:
    """Whether ``text`` fulfils every condition of a check.

    Conditions by name: ``exact`` (one of these texts, except for white space at the ends), ``contains`` (all of these
    texts, in any case), ``upper`` (letters, all of them capitals), ``start`` / ``end`` (first or last word, except for
    case and punctuation), ``without`` (none of these characters), ``lines`` (number of lines that all begin with a
    ``dash`` or a ``number``), ``json`` (an object with this key and a list of so many strings), ``members`` (so many of
    these words, each once), ``times`` (this word so many times and nothing else), ``sentences`` (number of sentences).

    Raises:
        KeyError: If a condition is unknown.
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
    entries: list[Any] | None = {str(name).lower(): entry for name, entry in body.items()}.get(key)
    return isinstance(entries, list) and len(entries) == count and all(isinstance(entry, str) for entry in entries)


def _lines(argument: Sequence[Any], text: str) -> bool:
    style, count = argument
    lines = text.split("\n")
    openings = ["- "] * len(lines) if style == "dash" else [f"{i}. " for i in range(1, len(lines) + 1)]
    return len(lines) == count and all(a.startswith(b) and a != b for a, b in zip(lines, openings, strict=True))


def _members(argument: Sequence[Any], text: str) -> bool:
    pool, count = argument
    members = [word for word in _words(text) if word in pool]
    return bool(len(members) == count == len(set(members)))


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
