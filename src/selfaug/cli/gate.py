"""`selfaug gate`: passes a run (exit code 0), fails it (1), or finds too few items to decide (3); errors exit with 2.

The decision uses the interval of the paired difference of base and tuned model, not the difference itself; of items
that went from right to wrong, how many noise does not explain.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.cli.config import Call, Command
from selfaug.cli.options import track
from selfaug.common.errors import ConfigError
from selfaug.common.files import missing_path
from selfaug.common.options import REQUIRED, option
from selfaug.common.terminal import emit, say

if TYPE_CHECKING:
    from selfaug.report.gate import Check
    from selfaug.run.folder import RunFolder

__all__ = ["COMMAND", "EXIT_CODES", "run"]

EXIT_CODES = {"pass": 0, "fail": 1, "undecided": 3}
_SAID = {
    "pass": "passed: every limit is kept.",
    "fail": "failed.",
    "undecided": "not decided: there are too few items, or no intervals.",
}


@dataclass
class Settings:
    """Settings of `selfaug gate`."""

    run: str = option(REQUIRED, "Folder of an evaluated run; its results.json is read.", group="Run", positional=True)
    max_drop: list[str] = option(
        [],
        "Largest loss allowed, such as general=2pt. NAME is task or general (the mean of its parts), a part, "
        "PART:METRIC, or a glob ('general:*', '*:f1'). LIMIT is in points (2pt), of the base's value (5%%), or in the "
        "metric's own unit (0.02).",
        group="Limits (each may be given several times)",
        metavar="NAME=LIMIT",
        repeated=True,
    )
    min_gain: list[str] = option([], "Smallest gain required, such as task=0.", metavar="NAME=LIMIT", repeated=True)
    max_lost: list[str] = option(
        [],
        "Most items that may go from right to wrong, such as general=3, or task=2%% of the items.",
        metavar="NAME=LIMIT",
        repeated=True,
    )
    json: bool = option(False, "Print JSON instead of the table.", group="Output")
    track: bool = track()


COMMAND = Command(
    "gate",
    Settings,
    __doc__ or "",
    (
        "selfaug gate runs/mine --max_drop general=2pt --min_gain task=0",
        "selfaug gate runs/mine --max_drop 'general:*=5%' --json",
    ),
)


def run(call: Call[Settings]) -> int:
    """Decide every rule, print the table, and return the exit code."""
    from selfaug.cli.tracking import of_gate
    from selfaug.evaluation.results import read_results
    from selfaug.report.gate import check, overall, parse_rule

    settings = call.settings
    rules = [
        *(parse_rule("max-drop", text) for text in settings.max_drop),
        *(parse_rule("min-gain", text) for text in settings.min_gain),
        *(parse_rule("max-lost", text) for text in settings.max_lost),
    ]
    if not rules:
        raise ConfigError(
            "there is nothing to decide",
            "pass --max-drop general=2pt, --min-gain task=0, --max-lost general=3, or several.",
        )
    folder = _folder(str(settings.run))
    results = read_results(folder.results)
    _check_weights(folder, results)
    checks: list[Check] = []
    notes: list[str] = []
    for rule in rules:
        found_checks, found_notes = check(rule, results)
        checks += found_checks
        notes += found_notes
    verdict = overall(checks)
    if settings.json:
        emit(json.dumps(_as_json(folder.path, verdict, checks, notes), indent=2, ensure_ascii=False))
    else:
        emit(_table(checks))
    for note in notes:
        say(f"note: {note}")
    for one in checks:
        if one.verdict != "pass":
            say(f"{one.rule}: {one.subject}: {one.reason}.")
    say(_SAID[verdict])
    if settings.track:
        from selfaug.run.trackers import send

        send(folder, of_gate(EXIT_CODES[verdict], checks))
    return EXIT_CODES[verdict]


def _folder(name: str) -> RunFolder:
    from selfaug.run.folder import RunFolder

    folder = RunFolder.at(name)
    if folder.path.is_dir():
        return folder
    hint = "give the --output_dir of a `selfaug train` run that `selfaug evaluate` has measured."
    raise missing_path("the run folder", name, hint)


def _check_weights(folder: RunFolder, results: Mapping[str, Any]) -> None:
    """Check that the results are of the finished weights; without a manifest this is not known."""
    finished = folder.read_manifest().get("finished") or {}
    weights, measured = finished.get("weights"), results["hashes"].get("tuned")
    if weights is not None and measured is not None and weights != measured:
        raise ConfigError(
            f"{folder.results} was measured on other weights ({measured}) than the run's finished ones "
            f"({weights}), so it says nothing of them",
            f"run `selfaug evaluate {folder.path}` again.",
        )


def _table(checks: Sequence[Check]) -> str:
    from selfaug.report.numbers import format_metric, unit_label
    from selfaug.shift.table import columns

    rows = []
    for one in checks:
        gain, unit = one.gain, one.gain.unit

        def shown(value: float, unit: str = unit) -> str:
            return format_metric(value, unit, signed=True)

        between = "none" if gain.low is None or gain.high is None else f"[{shown(gain.low)}, {shown(gain.high)}]"
        rows.append([one.verdict, str(one.rule), one.subject, shown(gain.value), between, shown(one.floor),
                     unit_label(unit, difference=True), f"{gain.n:,}"])  # fmt: skip
    return columns(("verdict", "rule", "measured", "gain", "between", "at least", "unit", "items"), rows, 3)


def _as_json(folder: Path, verdict: str, checks: Sequence[Check], notes: Sequence[str]) -> dict[str, Any]:
    return {
        "run": str(folder),
        "verdict": verdict,
        "exit_code": EXIT_CODES[verdict],
        "checks": [one.as_json() for one in checks],
        "notes": list(notes),
    }
