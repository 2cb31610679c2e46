"""Output to the terminal: messages go to stderr, data to stdout."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from selfaug.common.redaction import redacted

__all__ = ["coloured", "emit", "is_main", "muted", "say", "talk", "warn"]

_talk: TextIO | None = None  # the stream of messages while stderr is muted


def is_main() -> bool:
    """Return whether this is the first process of a distributed run, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def talk() -> TextIO:
    """Return the stream of messages: stderr, also inside :func:`muted`."""
    return _talk or sys.stderr


def say(text: str = "") -> None:
    """Write a message to stderr, without credentials, from the first process of a distributed run only."""
    if is_main():
        talk().write(f"{redacted(text)}\n")
        talk().flush()


def warn(message: str, hint: str = "") -> None:
    """Warn that something is probably not what the user wants, with a hint on the next line."""
    yellow, plain = ("\033[1;33m", "\033[0m") if coloured() else ("", "")
    say(f"{yellow}warning:{plain} {message}" + (f"\n  hint: {hint}" if hint else ""))


def emit(text: str) -> None:
    """Write a line of data to stdout, for the next program in a pipe."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def coloured() -> bool:
    """Return whether stderr shows colours: it is a terminal, and ``NO_COLOR`` is not set."""
    return talk().isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Drop what libraries print to stdout and stderr while the block runs; :func:`say` still writes."""
    global _talk
    before, _talk = _talk, talk()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        _talk = before
