"""Missing measurements of a run with the commands that make them, and warnings on outdated ones."""

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
    """A missing measurement: ``what`` in words, and the command that makes it, or ``None``."""

    what: str
    command: str | None


def missing_of(
    folder: RunFolder,
    events: Sequence[Any],
    metrics: Sequence[Measured],
    has_samples: bool,
    shift: Shift | None,
) -> list[Missing]:
    """Return the missing measurements, in the order in which they would be made."""
    run = shlex.quote(str(folder.path))
    foreign = folder.foreign
    # What a run folder would say of the data is asked for of other trainers' models.
    data, rows, alone = ("", "", "") if foreign is None else (" --data FILE", " --dataset_name FILE", " --no_task")
    missing = []
    if foreign is not None:
        missing.append(Missing("Nothing is known of the training: another trainer did it, without a run folder", None))
    elif folder.finished is None:
        finish = f"selfaug train --config {shlex.quote(str(folder.config))} --resume_from_checkpoint"
        missing.append(Missing("The training has not finished", finish))
    if not events and foreign is None:
        missing.append(Missing("The training's log is missing", None))
    groups = {one.group for one in metrics}
    if "task" not in groups:
        missing.append(Missing("What was gained at the task is not measured", f"selfaug evaluate {run}{data}"))
    if "general" not in groups:
        missing.append(Missing("General ability is not measured", f"selfaug evaluate {run}{alone} --general quick"))
    if metrics and not has_samples:
        missing.append(Missing("The answers themselves (samples.jsonl) are missing", f"selfaug evaluate {run}{data}"))
    if shift is None:
        missing.append(Missing("The shift is not measured", f"selfaug shift {run}{rows}"))
    elif "general_text" not in shift.regions:
        missing.append(
            Missing("The shift on general text is not measured", f"selfaug shift {run}{rows} --general_text FILE")
        )
    return missing


def warnings_of(manifest: Mapping[str, Any], results: Mapping[str, Any] | None, shift: Shift | None) -> list[str]:
    """Warn of measurements on other weights than the run's, as after further training."""
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
