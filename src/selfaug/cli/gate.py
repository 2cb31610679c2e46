"""`selfaug gate`: pass a run (exit 0), fail it (1), or find too few items to decide (3); a mistake exits with 2.

It decides on the interval of the paired difference of base and tuned, not on the difference itself.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.cli.verb_options import adder, resolve, switch
from selfaug.common.errors import ConfigError, nearest
from selfaug.common.terminal import emit, say

if TYPE_CHECKING:
    from selfaug.report.gate import Check

__all__ = ["EXIT_CODES", "add_parser", "run"]

EXIT_CODES = {"pass": 0, "fail": 1, "undecided": 3}
_SAID = {
    "pass": "passed: every limit is kept.",
    "fail": "failed.",
    "undecided": "not decided: there are too few items, or no intervals.",
}


@dataclass
class Settings:
    """What `selfaug gate` was asked to do; the flags' help says what each means."""

    run: str | None = None
    max_drop: list[str] = field(default_factory=list)
    min_gain: list[str] = field(default_factory=list)
    json: bool = False


def _flags(parser: argparse.ArgumentParser) -> None:
    add = adder(parser)
    names = "NAME is task or general (the mean of its parts), a part, PART:METRIC, or a glob ('general:*', '*:f1')"
    limits = "LIMIT is in points (2pt), of the base's value (5%%), or in the metric's own unit (0.02)"
    add("max_drop", f"how much may be lost, such as general=2pt; {names}; {limits}", action="append",
        metavar="NAME=LIMIT")  # fmt: skip
    add("min_gain", "how much must be gained, such as task=0", action="append", metavar="NAME=LIMIT")
    add("json", "print JSON instead of the table", type=switch, nargs="?", const=True, metavar="true|false")


def add_parser(subparsers: Any) -> None:
    """The flags of the verb."""
    parser = subparsers.add_parser("gate", help="pass or fail a run by what it gained and lost", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="folder of an evaluated run; its results.json is read")
    _flags(parser)


def run(args: argparse.Namespace) -> int:
    """Decide every rule, print the table; the exit code."""
    from selfaug.evaluation.results import read_results
    from selfaug.report.gate import check, overall, parse_rule

    flags = argparse.ArgumentParser()
    _flags(flags)
    settings = resolve(Settings, "gate", flags, args)
    rules = [
        *(parse_rule("max-drop", text) for text in settings.max_drop),
        *(parse_rule("min-gain", text) for text in settings.min_gain),
    ]
    if not rules:
        raise ConfigError("there is nothing to decide", "pass --max-drop general=2pt, --min-gain task=0, or both.")
    folder = _folder(str(settings.run))
    results = read_results(folder / "results.json")
    _check_weights(folder, results)
    checks: list[Check] = []
    notes: list[str] = []
    for rule in rules:
        found, said = check(rule, results)
        checks += found
        notes += said
    verdict = overall(checks)
    if settings.json:
        emit(json.dumps(_as_json(folder, verdict, checks, notes), indent=2, ensure_ascii=False))
    else:
        emit(_table(checks))
    for note in notes:
        say(f"note: {note}")
    for one in checks:
        if one.verdict != "pass":
            say(f"{one.rule}: {one.subject}: {one.reason}.")
    say(_SAID[verdict])
    return EXIT_CODES[verdict]


def _folder(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    siblings = [entry.name for entry in path.parent.glob("*")] if path.parent.is_dir() else []
    raise ConfigError(
        f"the run folder {path} does not exist.{nearest(path.name, siblings)}",
        "give the --output_dir of a `selfaug train` run that `selfaug evaluate` has measured.",
    )


def _check_weights(folder: Path, results: Mapping[str, Any]) -> None:
    """Refuse results of other weights than the finished ones; a folder without a manifest cannot tell."""
    from selfaug.run.manifest import read_manifest

    manifest = folder / "manifest.json"
    finished = (read_manifest(manifest).get("finished") or {}) if manifest.is_file() else {}
    weights, measured = finished.get("weights"), results["hashes"].get("tuned")
    if weights is not None and measured is not None and weights != measured:
        raise ConfigError(
            f"{folder / 'results.json'} was measured on other weights ({measured}) than the run's finished ones "
            f"({weights}), so it says nothing of them",
            f"run `selfaug evaluate {folder}` again.",
        )


def _table(checks: Sequence[Check]) -> str:
    from selfaug.report.numbers import format_metric, unit_label
    from selfaug.shift.table import columns

    rows = []
    for one in checks:
        gain, unit = one.gain, one.gain.unit

        def said(value: float, unit: str = unit) -> str:
            return format_metric(value, unit, signed=True)

        between = "none" if gain.low is None or gain.high is None else f"[{said(gain.low)}, {said(gain.high)}]"
        rows.append([one.verdict, str(one.rule), one.subject, said(gain.value), between, said(one.floor),
                     unit_label(unit, difference=True), f"{gain.n:,}"])  # fmt: skip
    return columns(("verdict", "rule", "measured", "gain", "between", "at least", "unit", "items"), rows, 3)


def _as_json(folder: Path, verdict: str, checks: Sequence[Check], notes: Sequence[str]) -> dict[str, Any]:
    return {
        "run": str(folder),
        "verdict": verdict,
        "exit_code": EXIT_CODES[verdict],
        "checks": [
            {
                "rule": str(one.rule),
                "measured": one.subject,
                "verdict": one.verdict,
                "reason": one.reason,
                "gain": one.gain.value,
                "low": one.gain.low,
                "high": one.gain.high,
                "at_least": one.floor,
                "unit": one.gain.unit,
                "base": one.gain.base,
                "items": one.gain.n,
                "metrics": one.gain.members,
            }
            for one in checks
        ],
        "notes": list(notes),
    }
