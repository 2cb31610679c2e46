"""`selfaug report`: one page on what runs gained, lost and cost; one file, no network."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfaug.cli.verb_options import adder, resolve
from selfaug.common.errors import ConfigError
from selfaug.common.terminal import emit, say

__all__ = ["add_parser", "run"]


@dataclass
class Settings:
    """What `selfaug report` was asked to do; the flags' help says what each means."""

    runs: list[str] = field(default_factory=list)
    format: str = "html"
    output: str | None = None
    title: str | None = None
    regressions: int = 5


def _flags(parser: argparse.ArgumentParser) -> None:
    add = adder(parser)
    add("format", "html, or md for model cards and pull requests (default: html)", choices=["html", "md"])
    add(
        "output",
        "the file; - for stdout (default: RUN/report.html for one run, report.html for several, stdout for md)",
        metavar="FILE",
    )
    add("title", "of the page (default: the runs' names)", metavar="TEXT")
    add("regressions", "how many worst answers of each part are shown (default: 5)", type=int, metavar="N")


def add_parser(subparsers: Any) -> None:
    """The flags of the verb."""
    parser = subparsers.add_parser("report", help="write one page on what runs gained, lost and cost",
                                   description=__doc__)  # fmt: skip
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs, measured or not")
    _flags(parser)


def run(args: argparse.Namespace) -> int:
    """Read the runs' folders and write the page; the exit code."""
    flags = argparse.ArgumentParser()
    _flags(flags)
    settings = resolve(Settings, "report", flags, args)
    if settings.regressions < 0:
        raise ConfigError(f"--regressions is {settings.regressions}", "give 0 or more.")
    output = _output(settings)
    from selfaug.report.facts import report_of

    report = report_of(settings.runs, regressions=settings.regressions)
    if settings.format == "md":
        from selfaug.report.markdown import markdown

        text = markdown(report)
    else:
        from selfaug.report.page import page

        text = page(report, title=settings.title)
    for one in report.runs:
        for item in one.missing:
            say(f"{one.path}: {item.what[0].lower()}{item.what[1:]}{f': {item.command}' if item.command else ''}")
    if output is None:
        emit(text.rstrip("\n"))
        return 0
    _write(output, text)
    emit(str(output))
    return 0


def _output(settings: Settings) -> Path | None:
    from selfaug.run.folder import REPORT, RunFolder

    if settings.output == "-" or (settings.output is None and settings.format == "md"):
        return None
    if settings.output is not None:
        output = Path(settings.output).expanduser()
    elif len(settings.runs) == 1:
        output = RunFolder(Path(settings.runs[0]).expanduser()).report
    else:
        output = Path(REPORT)
    if output.is_dir():
        raise ConfigError(f"--output {settings.output} is a folder", "name a file.")
    return output


def _write(path: Path, text: str) -> None:
    from selfaug.common.store import DiskError, write_whole

    try:
        write_whole(path, text)
    except DiskError as error:
        raise ConfigError(error.message, "name a place with --output.") from None
