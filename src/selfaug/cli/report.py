"""`selfaug report`: writes one page on what runs gained, lost and cost, as a single file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from selfaug.cli.config import Call, Command
from selfaug.common.errors import ConfigError
from selfaug.common.options import REQUIRED, option
from selfaug.common.terminal import emit, say

__all__ = ["COMMAND", "run"]


@dataclass
class Settings:
    """Settings of `selfaug report`."""

    runs: list[str] = option(
        REQUIRED, "Folders of runs, measured or not.", group="Runs", metavar="RUN", positional=True
    )
    format: Literal["html", "md"] = option(
        "html", "'html', or 'md' for model cards and pull requests.", group="The page"
    )
    output: str | None = option(
        None,
        "File of the page; - for stdout.",
        metavar="FILE",
        shown="RUN/report.html for one run, report.html for several, stdout for md",
    )
    title: str | None = option(None, "Title of the page.", shown="the runs' names")
    regressions: int = option(5, "Number of worst answers shown for each part.")


COMMAND = Command(
    "report",
    Settings,
    __doc__ or "",
    (
        "selfaug report runs/lora runs/selfaug --output compare.html",
        "selfaug report runs/mine --format md",
    ),
)


def run(call: Call[Settings]) -> int:
    """Read the runs' folders, write the page, and return the exit code."""
    settings = call.settings
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
        output = RunFolder.at(settings.runs[0]).report
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
