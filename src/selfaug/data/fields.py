"""Typed access to the fields of a row, and errors that name the field."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from selfaug.common.errors import DataError, nearest

__all__ = ["RECEIVED", "Fields", "RowError", "Where", "present", "shown"]

RECEIVED = ", received "
"""Words of an error between what was expected and the value of the row; what follows is no part of the reason."""

_MISSING = object()
_WORDS = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxtuple, _REPR.maxstring, _REPR.maxother = 2, 4, 4, 80, 80


def shown(value: object) -> str:
    """A value as an error message shows it: its Python text, cut to what fits on a line."""
    if value is _MISSING:
        return "nothing"
    try:
        text = _REPR.repr(value)
    except ValueError:  # An integer of more digits than Python prints.
        text = f"a {type(value).__name__} too long to print"
    return text if len(text) <= 200 else text[:197] + "..."


def present(value: Any) -> Any:
    """A row of a table, or a value in one, without the keys that are null there, at every depth.

    A table gives all objects of a column the same keys: ``{"city": "Rome"}`` beside ``{"zone": 3}`` comes back as
    ``{"city": "Rome", "zone": null}``. A null that is an entry of a list stays: tables add none of these.
    """
    if isinstance(value, Mapping):
        return {key: present(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list) and any(isinstance(inner, Mapping | list) for inner in value):
        return [present(inner) for inner in value]
    return value


@dataclass(frozen=True)
class Where:
    """Where a row stands: ``unit`` is "line" in line files and "row" elsewhere, counted from 1.

    ``inside`` names the part of a row that holds several records, such as ``paragraphs[0].qas[2]`` of SQuAD.
    """

    file: str
    line: int
    unit: str = "line"
    inside: str = ""

    def within(self, part: str) -> Where:
        """The same place, one level further in."""
        return replace(self, inside=f"{self.inside}.{part}" if self.inside else part)

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.line}"


class RowError(DataError):
    """One row that cannot be used: file, line, field, what was expected and what was received.

    Args:
        where: The row's place.
        field: The field's path, such as ``documents[2].text``; empty for the whole row.
        expected: What the field must hold.
        received: What it holds, as :func:`shown` prints it.
        hint: What to do, where there is more to say than to mend the row.
    """

    def __init__(self, where: Where, field: str, expected: str, received: str, hint: str = "") -> None:
        # Names of fields may hold what UTF-8 cannot write, as values may.
        path = ".".join(part for part in (where.inside, field) if part).encode("utf-8", "backslashreplace").decode()
        place = f"{where}, field {path!r}" if path else str(where)
        mend = hint or "mend the row"
        super().__init__(
            f"{place}: expected {expected}{RECEIVED}{received}",
            f"{mend}; or pass --on_bad_row skip to leave bad rows out (they are counted and listed).",
        )
        self.where, self.field, self.expected, self.received = where, path, expected, received


class Fields:
    """Typed access to one JSON object: each getter returns a value of its type or raises :class:`RowError`.

    ``null`` counts as absent, since columnar files have no other way to leave a field out. ``bool`` is not a number,
    NaN and infinity are not scores, blank text is not text, and text that cannot be written as UTF-8 is refused.

    Args:
        row: The object.
        where: Its place, for messages.
        path: The field path of the object inside its row, such as ``documents[2]``.
    """

    def __init__(self, row: object, where: Where, path: str = "") -> None:
        self.where, self.path = where, path
        if not isinstance(row, Mapping):
            raise RowError(where, path, "an object", shown(row))
        self.row: Mapping[Any, Any] = row

    def name(self, key: str) -> str:
        """The field's path from the row's root."""
        return f"{self.path}.{key}" if self.path else key

    def get(self, key: str) -> Any:
        """The raw value, or ``None`` where it is absent."""
        return self.row.get(key)

    def error(self, key: str, expected: str, hint: str = "") -> RowError:
        """The error that says what this field should have held."""
        value = self.row.get(key, _MISSING)
        near = nearest(key, (str(k) for k in self.row)) if value is _MISSING else ""
        return RowError(self.where, self.name(key), expected, shown(value) + (f".{near}" if near else ""), hint)

    def optional_text(self, key: str, *, blank: bool = False) -> str | None:
        """Text, or ``None`` where absent; with ``blank`` empty text is allowed and returned as it is."""
        value = self.row.get(key)
        return None if value is None else self._text(value, key, blank=blank)

    def text(self, key: str) -> str:
        """Text that is there and not blank."""
        value = self.row.get(key)
        if value is None:
            raise self.error(key, "non-empty text")
        return self._text(value, key)

    def identifier(self, key: str = "id") -> str | None:
        """Text or an integer (returned as text), or ``None`` where absent or empty."""
        value = self.row.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            raise self.error(key, "text or an integer")
        return self._text(value, key)

    def flag(self, key: str) -> bool | None:
        """True or false, also as 1, 0 or the words (a table of text has no others); ``None`` where absent."""
        value = self.row.get(key)
        if value is None or isinstance(value, bool):
            return value
        if (isinstance(value, int) and value in (0, 1)) or (isinstance(value, str) and value.strip().lower() in _WORDS):
            return bool(value) if isinstance(value, int) else _WORDS[value.strip().lower()]
        raise self.error(key, "true or false")

    def number(self, key: str) -> float | None:
        """A finite number, also one written as text, or ``None`` where absent."""
        value = self.row.get(key)
        if value is None:
            return None
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise self.error(key, "a finite number") from None
        try:
            finite = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        except OverflowError:  # An integer beyond float's range.
            finite = False
        if not finite:
            raise self.error(key, "a finite number")
        return float(value)

    def items(self, key: str, of: str) -> list[Any] | None:
        """A list, or ``None`` where absent. ``of`` says what it should hold, for the message."""
        value = self.row.get(key)
        if value is None:
            return None
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise self.error(key, f"a list of {of}")
        return list(value)

    def objects(self, key: str, of: str = "objects") -> list[Fields] | None:
        """A list of objects, each with its own path, or ``None`` where absent."""
        values = self.items(key, of)
        if values is None:
            return None
        return [Fields(value, self.where, f"{self.name(key)}[{i}]") for i, value in enumerate(values)]

    def texts(self, key: str) -> tuple[str, ...] | None:
        """One text or a list of texts, none of them blank, without repetitions; ``None`` where absent."""
        value = self.row.get(key)
        if value is None:
            return None
        if isinstance(value, str):
            return (self._text(value, key),)
        if not isinstance(value, Sequence) or isinstance(value, bytes):
            raise self.error(key, "text or a list of texts")
        return tuple(dict.fromkeys(self._text(item, f"{key}[{i}]") for i, item in enumerate(value)))

    def check_json(self, key: str) -> Any:
        """The raw value, checked to be something that JSON can write and read back."""
        value = self.row.get(key)
        try:
            json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError):  # UnicodeEncodeError is a ValueError.
            raise self.error(key, "plain JSON: text, finite numbers, true, false, null, lists and objects") from None
        return value

    def _text(self, value: object, key: str, *, blank: bool = False) -> str:
        expected = "text" if blank else "non-empty text"
        if not isinstance(value, str) or (not blank and not value.strip()):
            raise RowError(self.where, self.name(key), expected, shown(value))
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RowError(self.where, self.name(key), "text that UTF-8 can write", ascii(shown(value))) from None
        return value
