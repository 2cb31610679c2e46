r"""Paths say where in a row a field of a record stands; ``--map`` and the table of shapes are written in them.

question                       the column of that name, whatever characters it holds
context.contexts               a field of an object
ctxs[].text                    of each entry of a list, or of each value of an object (whose key names the entry)
turns[0].content               of one entry
passages.split(\n\n)             the parts of a text between separators
answer.value + answer.aliases  several, one after the other
!is_impossible                 the opposite of a flag
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from selfaug.common.errors import ConfigError
from selfaug.data.fields import RowError, Where, shown

__all__ = ["Found", "Path", "holds"]

_SPLIT = re.compile(r"(.+)\.split\((.+)\)", re.DOTALL)
_STEP = re.compile(r"([^.\[\]]+)|\[(\d*)\]|\.")
_PLUS = re.compile(r"\s*\+\s*(?![^()]*\))")
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}


@dataclass(frozen=True)
class Found:
    """One value that a path leads to.

    Args:
        name: Its own path in the row, such as ``ctxs[2].text``, for messages.
        value: What stands there; ``None`` where nothing does.
        key: The key of the entry that it was found in, where entries are the values of an object.
    """

    name: str
    value: Any
    key: str | None = None


@dataclass(frozen=True)
class _Term:
    text: str
    steps: tuple[str | int | None, ...]  # a key, a place, or None for each entry
    separator: str | None

    @classmethod
    def parse(cls, text: str) -> _Term:
        separator = None
        if cut := _SPLIT.fullmatch(text):
            text = cut[1]
            separator = re.sub(r"\\[nt\\]", lambda match: _ESCAPES[match[0]], cut[2])
        steps: list[str | int | None] = []
        at = 0
        for match in _STEP.finditer(text):
            if match.start() != at:
                break
            at = match.end()
            if match[1] is not None:
                steps.append(match[1])
            elif match[2] is not None:
                steps.append(int(match[2]) if match[2] else None)
        if at != len(text) or not steps or not isinstance(steps[0], str):
            raise ConfigError(
                f"{text!r} is not a path to a field",
                "write a column, with .field for a field of an object, [] for each entry of a list, [0] for one.",
            )
        return cls(text, tuple(steps), separator)

    def find(self, row: Mapping[str, Any], where: Where) -> Iterator[Found]:
        # A column's own name goes first: tables made from nested data have names with dots in them.
        steps = (self.text,) if self.text in row else self.steps
        for found in _walk(Found("", row), steps, where):
            if self.separator is None or found.value is None:
                yield found
                continue
            if not isinstance(found.value, str):
                raise RowError(where, found.name, "text, which is cut at a separator", shown(found.value))
            for part in found.value.split(self.separator):
                if part.strip():
                    yield Found(found.name, part.strip(), found.key)


def _walk(at: Found, steps: tuple[str | int | None, ...], where: Where) -> Iterator[Found]:
    if not steps:
        yield at
        return
    step, rest, value = steps[0], steps[1:], at.value
    if isinstance(step, str):
        if value is not None and not isinstance(value, Mapping):
            raise RowError(where, at.name, f"an object with {step!r}", shown(value))
        name = f"{at.name}.{step}" if at.name else step
        yield from _walk(Found(name, None if value is None else value.get(step), at.key), rest, where)
    elif step is not None:
        if value is not None and not isinstance(value, list | tuple):
            raise RowError(where, at.name, "a list", shown(value))
        entry = value[step] if value is not None and step < len(value) else None
        yield from _walk(Found(f"{at.name}[{step}]", entry, at.key), rest, where)
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _walk(Found(f"{at.name}.{key}", entry, str(key)), rest, where)
    elif isinstance(value, list | tuple):
        for i, entry in enumerate(value):
            yield from _walk(Found(f"{at.name}[{i}]", entry, at.key), rest, where)
    elif value is not None:
        raise RowError(where, at.name, "a list, or an object of entries", shown(value))


@dataclass(frozen=True)
class Path:
    """A parsed path.

    Args:
        text: As it was written.
        terms: What the pluses join.
        negated: Whether it stands for the opposite of a flag.
    """

    text: str
    terms: tuple[_Term, ...]
    negated: bool = False

    @classmethod
    @lru_cache(maxsize=1024)
    def parse(cls, text: str) -> Path:
        """The path that a text spells.

        Raises:
            ConfigError: If it is none.
        """
        negated = text.startswith("!")
        return cls(text, tuple(_Term.parse(term.strip()) for term in _PLUS.split(text.removeprefix("!"))), negated)

    def find(self, row: Mapping[str, Any], where: Where) -> list[list[Found]]:
        """What each of the joined terms leads to.

        Raises:
            RowError: If a value on the way is not what the path takes it for.
        """
        return [list(term.find(row, where)) for term in self.terms]

    def all(self, row: Mapping[str, Any], where: Where) -> list[Found]:
        """Everything that the path leads to, in one list."""
        return [found for term in self.find(row, where) for found in term]

    def one(self, row: Mapping[str, Any], where: Where) -> Found:
        """The first thing that is there; with the value ``None`` where nothing is."""
        found = self.all(row, where)
        return next((f for f in found if f.value is not None), found[0] if found else Found(self.text, None))

    def columns(self, row: Iterable[str]) -> set[str]:
        """The columns that the path reads in a row with these."""
        present = set(row)
        return {term.text if term.text in present else str(term.steps[0]) for term in self.terms}

    @property
    def each(self) -> bool:
        """Whether it leads to entries of a list, and not to the list."""
        return any(None in term.steps or term.separator is not None for term in self.terms)


def holds(row: Mapping[str, Any], paths: str) -> bool:
    """Whether something stands at one of these paths (joined by ``|``)."""
    for text in paths.split("|"):
        try:
            if any(found.value is not None for found in Path.parse(text.strip()).all(row, Where("", 0))):
                return True
        except RowError:
            continue
    return False
