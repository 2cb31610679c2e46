"""What does a run lack, which command makes it, and which numbers should a reader doubt?"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfaug.report.gains import Measured
from selfaug.report.shifts import Shift
from selfaug.run.folder import RESULTS, SHIFT, RunFolder

__all__ = ["Missing", "missing_of", "warnings_of"]


@dataclass(frozen=True)
class Missing:
    """What a run lacks: ``what`` in words, and the command that makes it, or ``None``."""

    what: str
    command: str | None


def missing_of(
    folder: RunFolder,
    events: Sequence[Any],
    metrics: Sequence[Measured],
    sampled: bool,
    shift: Shift | None,
) -> list[Missing]:
    """What the run lacks, in the order in which it would be made."""
    run = shlex.quote(str(folder.path))
    found = []
    if folder.finished is None:
        finish = f"selfaug train --config {shlex.quote(str(folder.config))} --resume_from_checkpoint"
        found.append(Missing("The training has not finished", finish))
    if not events:
        found.append(Missing("The training's log is missing", None))
    groups = {one.group for one in metrics}
    if "task" not in groups:
        found.append(Missing("What was gained at the task is not measured", f"selfaug evaluate {run}"))
    if "general" not in groups:
        found.append(Missing("General ability is not measured", f"selfaug evaluate {run} --general quick"))
    if metrics and not sampled:
        found.append(Missing("The answers themselves (samples.jsonl) are missing", f"selfaug evaluate {run}"))
    if shift is None:
        found.append(Missing("The shift is not measured", f"selfaug shift {run}"))
    elif "general_text" not in shift.regions:
        found.append(Missing("The shift on general text is not measured", f"selfaug shift {run} --general_text FILE"))
    return found


def warnings_of(manifest: Mapping[str, Any], results: Mapping[str, Any] | None, shift: Shift | None) -> list[str]:
    """Measurements of other weights than the run's own: it was trained on after it had been measured."""
    tuned = (manifest.get("finished") or {}).get("weights")
    measured_on = {
        RESULTS: None if results is None else results["hashes"].get("tuned"),
        SHIFT: None if shift is None else shift.weights,
    }
    return [
        f"{file} was measured on other weights than the finished ones: measure again."
        for file, weights in measured_on.items()
        if tuned and weights and weights != tuned
    ]
