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
_FLAG_WORDS = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxtuple, _REPR.maxstring, _REPR.maxother = 2, 4, 4, 80, 80


def shown(value: object) -> str:
    """Return a value's Python text for an error message, cut to at most 200 characters."""
    if value is _MISSING:
        return "nothing"
    try:
        text = _REPR.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = f"a {type(value).__name__} too long to print"
    return text if len(text) <= 200 else text[:197] + "..."


def present(value: Any) -> Any:
    """Return a table's row, or a value in one, without the keys that are null, at every depth.

    A table gives all objects of a column the same keys: ``{"city": "Rome"}`` beside ``{"zone": 3}`` comes back as
    ``{"city": "Rome", "zone": null}``. Nulls in lists stay, since tables add none there.
    """
    if isinstance(value, Mapping):
        return {key: present(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list) and any(isinstance(inner, Mapping | list) for inner in value):
        return [present(inner) for inner in value]
    return value


@dataclass(frozen=True)
class Where:
    """The place of a row.

    Args:
        file: Path of the file, or name of the data set.
        line: Number of the line or row, from 1.
        unit: "line" for line files, "row" for others.
        inside: Path inside a row that holds several records, such as ``paragraphs[0].qas[2]`` of SQuAD.
    """

    file: str
    line: int
    unit: str = "line"
    inside: str = ""

    def within(self, part: str) -> Where:
        """Return the place of a part of this place."""
        return replace(self, inside=f"{self.inside}.{part}" if self.inside else part)

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.line}"


class RowError(DataError):
    """An error about one row that cannot be used: its place, the field, and what was expected and received.

    Args:
        where: Place of the row.
        field: Path of the field, such as ``documents[2].text``; empty for the whole row.
        expected: Description of what the field must contain.
        received: Value of the field, as :func:`shown` prints it.
        hint: Advice for the user; empty for "mend the row".
    """

    def __init__(self, where: Where, field: str, expected: str, received: str, hint: str = "") -> None:
        # Names of fields, like values, may contain characters that UTF-8 cannot write.
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
        row: JSON object.
        where: Place of its row, for messages.
        path: Path of the object inside its row, such as ``documents[2]``; empty for the row itself.
    """

    def __init__(self, row: object, where: Where, path: str = "") -> None:
        self.where, self.path = where, path
        if not isinstance(row, Mapping):
            raise RowError(where, path, "an object", shown(row))
        self.row: Mapping[Any, Any] = row

    def name(self, key: str) -> str:
        """Return the field's path in the row."""
        return f"{self.path}.{key}" if self.path else key

    def get(self, key: str) -> Any:
        """Return the raw value, or ``None`` where it is absent."""
        return self.row.get(key)

    def error(self, key: str, expected: str, hint: str = "") -> RowError:
        """Return the error that this field does not contain what was expected."""
        value = self.row.get(key, _MISSING)
        near = nearest(key, (str(k) for k in self.row)) if value is _MISSING else ""
        return RowError(self.where, self.name(key), expected, shown(value) + (f".{near}" if near else ""), hint)

    def optional_text(self, key: str, *, blank: bool = False) -> str | None:
        """Return a text, or ``None`` where absent; blank text is an error unless ``blank`` allows it."""
        value = self.row.get(key)
        return None if value is None else self._text(value, key, blank=blank)

    def text(self, key: str) -> str:
        """Return a text that must be present and not blank."""
        value = self.row.get(key)
        if value is None:
            raise self.error(key, "non-empty text")
        return self._text(value, key)

    def identifier(self, key: str = "id") -> str | None:
        """Return a text, or an integer as text; ``None`` where absent or empty."""
        value = self.row.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            raise self.error(key, "text or an integer")
        return self._text(value, key)

    def flag(self, key: str) -> bool | None:
        """Return a truth value, also one written as 1, 0 or a word, as in tables of text; ``None`` where absent."""
        value = self.row.get(key)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int) and value in (0, 1):
            return bool(value)
        if isinstance(value, str) and value.strip().lower() in _FLAG_WORDS:
            return _FLAG_WORDS[value.strip().lower()]
        raise self.error(key, "true or false")

    def number(self, key: str) -> float | None:
        """Return a finite number, also one written as text; ``None`` where absent."""
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
        except OverflowError:  # an integer beyond the range of float
            finite = False
        if not finite:
            raise self.error(key, "a finite number")
        return float(value)

    def items(self, key: str, of: str) -> list[Any] | None:
        """Return a list, or ``None`` where absent; ``of`` names its expected entries in the message."""
        value = self.row.get(key)
        if value is None:
            return None
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise self.error(key, f"a list of {of}")
        return list(value)

    def objects(self, key: str, of: str = "objects") -> list[Fields] | None:
        """Return a list of objects, each with its own path; ``None`` where absent."""
        values = self.items(key, of)
        if values is None:
            return None
        return [Fields(value, self.where, f"{self.name(key)}[{i}]") for i, value in enumerate(values)]

    def texts(self, key: str) -> tuple[str, ...] | None:
        """Return one text or a list of texts as distinct texts, none blank; ``None`` where absent."""
        value = self.row.get(key)
        if value is None:
            return None
        if isinstance(value, str):
            return (self._text(value, key),)
        if not isinstance(value, Sequence) or isinstance(value, bytes):
            raise self.error(key, "text or a list of texts")
        return tuple(dict.fromkeys(self._text(item, f"{key}[{i}]") for i, item in enumerate(value)))

    def check_json(self, key: str) -> Any:
        """Return the raw value, which must survive being written as JSON and read back."""
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
