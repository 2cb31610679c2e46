"""Errors that a user can fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

__all__ = ["ConfigError", "DataError", "UserError", "nearest", "tidy"]


class UserError(ValueError):
    """An error that the user can fix, with a hint.

    The command line prints ``error: {message}``, a blank line and ``hint: {hint}`` on stderr and exits with 2, without
    a traceback. In Python it is an ordinary ``ValueError`` whose text holds both parts.

    Args:
        message: Setting or file, the received value, and why it matters.
        hint: Advice on what to do.
    """

    said_elsewhere = False
    """Whether another process of the run tells the user."""

    def __init__(self, message: str, hint: str) -> None:
        self.message, self.hint = _sentence(message), _sentence(hint)
        super().__init__(f"{self.message}\n\nhint: {self.hint}")

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors cross processes, and subclasses are made from other arguments.
        return _again, (type(self), self.args, vars(self))


def _again(kind: type[UserError], args: tuple[Any, ...], state: dict[str, Any]) -> UserError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


def _sentence(text: str) -> str:
    """Return the text with a full stop, unless it already ends in one or in something to be copied."""
    text = text.rstrip()
    return text if text.endswith((".", "?", "!", ":", "`", "'", '"')) or "\n" in text else f"{text}."


class ConfigError(UserError):
    """A setting, or a combination of settings, that cannot work."""


class DataError(UserError):
    """A data file or row that cannot be used."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` with known names that begin with ``name_``, else the closest one, or ``""``."""
    known = list(known)
    begun = sorted(each for each in known if each.startswith(f"{name}_"))
    close = begun[:3] or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def tidy(error: BaseException) -> str:
    """Return the message of a library's exception as one paragraph of bounded length."""
    # A KeyError's own text is the repr of its message.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= 500 else f"{text[:500].rstrip()} ..."
