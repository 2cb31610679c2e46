"""Progress on stderr: the share of work that is done, and an estimate of the remaining time.

On a terminal it is a bar, elsewhere and in notebooks plain lines. The first line follows the first unit of work that
took noticeable time, later ones come at growing intervals, so that a log of days has some hundred lines.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

from selfaug.common.terminal import is_main, say, talk

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Estimate", "Screen", "Work", "counting", "span"]

Clock = Callable[[], float]

_NOTICEABLE = 1.0
"""Seconds below which neither elapsed nor remaining time is worth a line."""
_LINES_AT = (10.0, 60.0, 300.0, 900.0, 1800.0)
"""Seconds after which plain lines are due; later ones follow every half hour."""


class Estimate:
    """``left = (total - done) · seconds / done``, counted down while the next unit is under way.

    The mean is over all units done so far. rich and tqdm use the last seconds only, and so give no estimate where a
    unit takes longer.

    Args:
        total: Number of units; ``None`` where it is not known.
        done: Number of units that were done before the clock started.
        clock: Function that returns seconds.
    """

    def __init__(self, total: int | None, done: int = 0, clock: Clock = time.monotonic) -> None:
        self.total, self.done = total, done
        self._before, self._clock = done, clock
        self._began = self._updated = clock()

    def begin(self, done: int) -> None:
        """Set the number of units that were done before the clock started, where it becomes known later."""
        self.done = self._before = done

    def update(self, done: int) -> None:
        """Set the number of units that are done."""
        if done != self.done:
            self.done, self._updated = done, self._clock()

    @property
    def elapsed(self) -> float:
        """Seconds since the clock started."""
        return self._clock() - self._began

    @property
    def left(self) -> float | None:
        """Seconds that remain; ``None`` before the first unit is done, or where the total is not known."""
        new = self.done - self._before
        if not self.total or new <= 0:
            return None
        each, rest = (self._updated - self._began) / new, max(0, self.total - self.done)
        # A unit that takes longer than the mean does not shorten the estimate for later ones.
        return max(rest * each - (self._clock() - self._updated), max(0, rest - 1) * each)


def span(seconds: float) -> str:
    """Return a duration in its two largest units: ``13 min 30 s``, ``2 h 5 min``, ``3 d 4 h``."""
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    for large, name, small, other in (
        (days, "d", hours % 24, "h"), (hours, "h", minutes % 60, "min"), (minutes, "min", whole % 60, "s"),
    ):  # fmt: skip
        if large:
            return f"{large} {name} {small} {other}" if small else f"{large} {name}"
    return f"{whole} s"


class Work:
    """One piece of work on a :class:`Screen`.

    Args:
        screen: Screen that shows it.
        what: Name of the work.
        total: Number of units; ``None`` where it is not known.
        done: Number of units that were done before.
        always: Whether the first unit gets a plain line even if it took little time.
    """

    def __init__(self, screen: Screen, what: str, total: int | None, done: int = 0, always: bool = False) -> None:
        self.what, self.estimate = what, Estimate(total, done, screen.clock)
        self._screen, self._always = screen, always
        self._bar: TaskID | None = None
        self._due = 0.0 if always else _NOTICEABLE
        self._wrote_line = False
        if screen.bars is not None:
            self._bar = screen.bars.add_task(what, total=total, completed=done, estimate=self.estimate)

    def __call__(self, done: int) -> None:
        """Set the number of units that are done."""
        self.update(done)

    def update(self, done: int, *, line: bool = True) -> None:
        """Set the number of units that are done; ``line`` false suppresses a plain line where the caller writes one."""
        if done == self.estimate.done:
            return
        self.estimate.update(done)
        if self._screen.bars is not None and self._bar is not None:
            self._screen.bars.update(self._bar, completed=done)
        elif self.estimate.elapsed >= self._due and self._worth_a_line():
            self._due = _next_line(self.estimate.elapsed)
            self._wrote_line = True
            if line:
                self._screen.line(self.text())

    def _worth_a_line(self) -> bool:
        left = self.estimate.left
        if self.estimate.done == self.estimate.total:
            return False  # the caller's next message shows that the work is done
        return self._always or self._wrote_line or left is None or left >= _NOTICEABLE

    def left(self) -> str:
        """Return the remaining time, as in ``13 min 30 s left``; empty where there is no estimate."""
        left = self.estimate.left
        return "" if left is None else f"{span(left)} left"

    def text(self) -> str:
        """Return the progress as a line of text."""
        done, total = self.estimate.done, self.estimate.total
        if not total:
            return f"{self.what}: {done:,} in {span(self.estimate.elapsed)}"
        return f"{self.what}: {done:,} of {total:,} ({100 * done // total} %), about {self.left()}"

    def expect(self, total: int) -> None:
        """Set the number of units."""
        self.estimate.total = total
        if self._screen.bars is not None and self._bar is not None:
            self._screen.bars.update(self._bar, total=total)

    def remove(self) -> None:
        """Remove the bar from the screen."""
        if self._screen.bars is not None and self._bar is not None:
            self._screen.bars.remove_task(self._bar)
            self._bar = None


class Screen:
    """The display of pieces of work: bars on a terminal, else lines; only in the first process of a distributed run.

    Args:
        wants_bars: Whether bars are allowed.
        transient: Whether bars vanish at the end.
        clock: Function that returns seconds.
    """

    def __init__(self, *, wants_bars: bool = True, transient: bool = True, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        stream = talk()
        # A notebook gives `!command` a pseudo-terminal, and keeps every bar that is drawn as a line of output.
        plain = os.environ.get("TERM") == "dumb" or "JPY_PARENT_PID" in os.environ
        drawn = wants_bars and is_main() and stream.isatty() and not plain
        self.bars: Progress | None = _bars(stream, transient) if drawn else None

    def start(self) -> None:
        """Start drawing."""
        if self.bars is not None:
            self.bars.start()

    def stop(self) -> None:
        """Stop drawing; may be called twice."""
        if self.bars is not None:
            self.bars.stop()
            self.bars = None

    def add(self, what: str, total: int | None, done: int = 0, *, always: bool = False) -> Work:
        """Add a piece of work."""
        return Work(self, what, total, done, always)

    def line(self, text: str) -> None:
        """Write a line, above the bars where there are any."""
        if self.bars is not None:
            self.bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            say(text)


@contextlib.contextmanager
def counting(what: str, total: int | None) -> Iterator[Work]:
    """Show progress on stderr while the block runs; yield the function to call with the number of units done.

    Args:
        what: Name of the work.
        total: Number of units; ``None`` where it is not known.
    """
    screen = Screen()
    screen.start()
    work = screen.add(what, total)
    try:
        yield work
    finally:
        screen.stop()


def _next_line(elapsed: float) -> float:
    """Return the time of the next plain line after one at ``elapsed``, skipping one that would follow too soon."""
    return next((at for at in _LINES_AT if at > 1.5 * elapsed), elapsed + _LINES_AT[-1])


def _bars(stream: TextIO, transient: bool) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class TimeColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            estimate: Estimate = task.fields["estimate"]
            left = "" if estimate.left is None or task.finished else f", {span(estimate.left)} left"
            return Text(f"{span(estimate.elapsed)}{left}")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeColumn())
    # The stream is fixed here, since rich looks up `sys.stderr`, which is replaced while libraries are muted.
    return Progress(*columns, console=Console(file=stream), transient=transient)
