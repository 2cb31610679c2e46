"""Is the time left told from all that was done, on a terminal and in a file, and in few lines?"""

from __future__ import annotations

import io
import re
import sys

import pytest
from rich.progress import Progress

from selfaug.common.progress import Estimate, Screen, counting, span


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_one_step_of_90_seconds_out_of_ten_leaves_thirteen_and_a_half_minutes() -> None:
    clock = Clock()
    estimate = Estimate(10, clock=clock)
    clock.now += 90
    assert estimate.left is None
    estimate.update(1)
    assert estimate.left == pytest.approx(810)
    assert span(810) == "13 min 30 s"
    clock.now += 60  # the second step is under way
    assert estimate.left == pytest.approx(750)
    clock.now += 600  # it takes longer than the first did: the eight after it are still to come
    assert estimate.left == pytest.approx(720)
    estimate.update(2)
    assert estimate.left == pytest.approx(8 * 750 / 2)


def test_rich_alone_loses_steps_of_90_seconds() -> None:
    clock = Clock()
    bars = Progress(get_time=clock)
    task = bars.add_task("steps", total=10)
    for done in range(1, 5):
        clock.now += 90
        bars.update(task, completed=done)
    assert bars.tasks[0].time_remaining is None


def test_a_resumed_run_is_not_told_from_steps_that_it_did_not_take() -> None:
    clock = Clock()
    for before in (90, 0):
        estimate = Estimate(100, before, clock)
        if not before:
            estimate.begin(90)
        clock.now += 30
        estimate.update(91)
        assert estimate.left == pytest.approx(9 * 30)


@pytest.mark.parametrize("total", [None, 0, 5])
def test_what_cannot_be_told_is_not(total: int | None) -> None:
    clock = Clock()
    estimate = Estimate(total, clock=clock)
    clock.now += 5
    assert estimate.left is None
    estimate.update(5)
    assert estimate.left == (0 if total else None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.6, "1 min"), (45, "45 s"), (3600, "1 h"), (7500, "2 h 5 min"), (100 * 3600, "4 d 4 h")],
)
def test_times_are_said_in_two_units(seconds: float, text: str) -> None:
    assert span(seconds) == text


def lines_of(capsys: pytest.CaptureFixture[str], steps: int, seconds: float, *, always: bool = False) -> list[str]:
    clock = Clock()
    screen = Screen(clock=clock)
    assert screen.bars is None
    work = screen.add("steps", steps, always=always)
    for done in range(1, steps + 1):
        clock.now += seconds
        work(done)
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_without_a_terminal_the_first_step_of_a_minute_has_an_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of(capsys, 10, 90.0)
    assert lines[0] == "steps: 1 of 10 (10 %), about 13 min 30 s left"
    assert lines[1] == "steps: 4 of 10 (40 %), about 9 min left"  # after five minutes
    assert len(lines) == 2


def test_a_week_has_some_hundred_lines_and_a_million_fast_steps_a_handful(capsys: pytest.CaptureFixture[str]) -> None:
    week = lines_of(capsys, 7 * 24 * 60, 60.0)
    assert 300 < len(week) < 400
    assert len(lines_of(capsys, 100_000, 0.001)) <= 4


def test_what_is_over_at_once_has_no_line_unless_it_is_a_training(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines_of(capsys, 100, 0.001) == []
    assert lines_of(capsys, 3, 0.1, always=True) == ["steps: 1 of 3 (33 %), about 0 s left"]


def test_other_ranks_say_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    assert lines_of(capsys, 10, 90.0) == []
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert Screen().bars is None


@pytest.mark.parametrize("no_color", [None, "1"])
def test_a_terminal_gets_a_bar_with_the_time_left_and_colours_only_if_wanted(
    monkeypatch: pytest.MonkeyPatch, no_color: str | None
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", no_color)
    clock = Clock()
    screen = Screen(clock=clock)
    assert screen.bars is not None
    screen.start()
    work = screen.add("steps", 10)
    clock.now += 90
    work(1)
    screen.bars.refresh()
    screen.line("a line above")
    screen.stop()
    screen.stop()
    text = terminal.getvalue()
    assert "1 min 30 s, 13 min 30 s left" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert "a line above" in text
    assert bool(re.search(r"\x1b\[[0-9;]*3\d", text)) is (no_color is None)


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("JPY_PARENT_PID", "1")])
def test_a_dumb_terminal_and_a_notebook_get_lines(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    assert Screen().bars is not None
    monkeypatch.setenv(name, value)
    assert Screen().bars is None


def test_counting_works_inside_of_muted_libraries(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from selfaug.common.terminal import muted, say

    monkeypatch.setattr("selfaug.common.progress._NOTICEABLE", 0.0)
    with counting("items", None) as progress, muted():
        print("a library speaks")
        print("a library warns", file=sys.stderr)
        progress.expect(4)
        progress(1)
        say("we speak")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"items: 1 of 4 \(25 %\), about \d+ s left\nwe speak\n", captured.err)
