"""Talk goes to stderr, data to stdout: who writes what?"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from selfaug.redaction import redacted

__all__ = ["coloured", "counting", "emit", "is_main", "quiet_bars", "say"]


def is_main() -> bool:
    """Whether this is the first process of a distributed run, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str = "") -> None:
    """Tell the person at the terminal something: a line on stderr, from the first process of a distributed run."""
    if is_main():
        sys.stderr.write(f"{redacted(text)}\n")
        sys.stderr.flush()


def emit(text: str) -> None:
    """Write a line of data to stdout, for the next program in a pipe."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def coloured() -> bool:
    """Whether stderr shows colours: a terminal, and the user has not refused them with ``NO_COLOR``."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@contextlib.contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr while the block runs, where that is a terminal; gives what to call with the count."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal or not is_main():
        yield lambda _: None
        return
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


def quiet_bars() -> None:
    """Switch off the libraries' own progress bars where stderr is no terminal: in a file they are noise."""
    if sys.stderr.isatty():
        return
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
