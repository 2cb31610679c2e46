r"""Paths to the fields of a record in a row, the language of ``--map`` and of the table of shapes.

question                       the column of that name, which may have any characters
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
        name: Path of this value in the row, such as ``ctxs[2].text``, for messages.
        value: Value; ``None`` where there is none.
        key: Key of the value's entry, where entries are the values of an object; else ``None``.
    """

    name: str
    value: Any
    key: str | None = None


@dataclass(frozen=True)
class _Term:
    text: str
    steps: tuple[str | int | None, ...]  # keys, indices, and None for all entries
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
        # A column of this name is preferred, since tables made from nested data have names with dots.
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
        text: Text of the path.
        terms: Terms of the path, which are joined by plus signs.
        negated: Whether the path means the opposite of a flag.
    """

    text: str
    terms: tuple[_Term, ...]
    negated: bool = False

    @classmethod
    @lru_cache(maxsize=1024)
    def parse(cls, text: str) -> Path:
        """Return the path of a text.

        Raises:
            ConfigError: If the text is not a path.
        """
        negated = text.startswith("!")
        return cls(text, tuple(_Term.parse(term.strip()) for term in _PLUS.split(text.removeprefix("!"))), negated)

    def find(self, row: Mapping[str, Any], where: Where) -> list[list[Found]]:
        """Return the values of each term.

        Raises:
            RowError: If a value on the way has another type than the path needs.
        """
        return [list(term.find(row, where)) for term in self.terms]

    def all(self, row: Mapping[str, Any], where: Where) -> list[Found]:
        """Return the values of all terms in one list."""
        return [found for term in self.find(row, where) for found in term]

    def one(self, row: Mapping[str, Any], where: Where) -> Found:
        """Return the first value that is not ``None``, or one of ``None``."""
        found = self.all(row, where)
        return next((f for f in found if f.value is not None), found[0] if found else Found(self.text, None))

    def columns(self, row: Iterable[str]) -> set[str]:
        """Return the columns that the path reads in a row with the given columns."""
        present = set(row)
        return {term.text if term.text in present else str(term.steps[0]) for term in self.terms}

    @property
    def each(self) -> bool:
        """Whether the path leads to the entries of a list instead of the list."""
        return any(None in term.steps or term.separator is not None for term in self.terms)


def holds(row: Mapping[str, Any], paths: str) -> bool:
    """Tell whether a row has a value at one of these paths (joined by ``|``)."""
    for text in paths.split("|"):
        try:
            if any(found.value is not None for found in Path.parse(text.strip()).all(row, Where("", 0))):
                return True
        except RowError:
            continue
    return False
