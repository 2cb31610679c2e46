"""The terminal: talk goes to stderr, data to stdout."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from selfaug.common.redaction import redacted

__all__ = ["coloured", "emit", "is_main", "muted", "say", "talk", "warn"]

_talk: TextIO | None = None  # where talk goes while stderr is muted


def is_main() -> bool:
    """Whether this is the first process of a distributed run, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def talk() -> TextIO:
    """The stream of talk: stderr, also inside :func:`muted`."""
    return _talk or sys.stderr


def say(text: str = "") -> None:
    """Tell the person at the terminal something: a line on stderr, from the first process of a distributed run."""
    if is_main():
        talk().write(f"{redacted(text)}\n")
        talk().flush()


def warn(message: str, hint: str = "") -> None:
    """Say that something will probably not be what the user wants, and on the next line what to do about it."""
    yellow, plain = ("\033[1;33m", "\033[0m") if coloured() else ("", "")
    say(f"{yellow}warning:{plain} {message}" + (f"\n  hint: {hint}" if hint else ""))


def emit(text: str) -> None:
    """Write a line of data to stdout, for the next program in a pipe."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def coloured() -> bool:
    """Whether stderr shows colours: a terminal, and the user has not refused them with ``NO_COLOR``."""
    return talk().isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Drop what a library prints to stdout and stderr while the block runs; our own talk still comes through."""
    global _talk
    before, _talk = _talk, talk()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        _talk = before
