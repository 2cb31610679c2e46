"""The output of `selfaug compare`: a table, a figure and a file of numbers on its finished runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.common.errors import ConfigError
from selfaug.common.terminal import emit, say

if TYPE_CHECKING:
    from selfaug.study.grid import Pairs, Setting, Study
    from selfaug.study.run import Failure

__all__ = ["edges", "show"]


def show(
    study: Study, folder: Path, name: str, failures: Sequence[Failure], *, other_losses: Sequence[str] = ()
) -> None:
    """Write ``NAME.json``, ``NAME.md`` and ``NAME.svg``, and the table to stdout.

    Args:
        study: Study whose runs are compared.
        folder: Folder of the comparison.
        name: Name of the files, without their endings.
        failures: Runs that failed and are missing.
        other_losses: Methods that minimise something else than the NLL of responses.

    Raises:
        ConfigError: If no run of ``sft``, which the others are measured against, is finished. A single world without
            one is left out.
        DataError: If runs of a world were measured on different items.
    """
    from selfaug.common.files import write_durably
    from selfaug.study.grid import as_typed
    from selfaug.study.picture import draw
    from selfaug.study.summary import joined
    from selfaug.study.table import markdown

    summaries = {}
    for world, finished in _worlds(study, folder).items():
        world_summary = _summary(study, finished)
        if world_summary is None:
            continue
        runs = {setting.label: list(folders.values()) for setting, folders in finished.items()}
        for point in world_summary["points"]:
            point["runs"] = [run.name for run in runs[point["setting"]]]
            if study.shift is not None:
                point["shift"] = [_shift(run) for run in runs[point["setting"]]]
        summaries[" ".join(as_typed(world))] = world_summary
    if not summaries:
        raise ConfigError(
            "no run of sft is finished, and it is what the others are measured against",
            f"look at why: {failures[0].says}" if failures else "run the comparison again.",
        )
    whole = joined(summaries)
    whole["other_losses"] = list(other_losses)
    whole["failed"] = [f"{failure.run.name}: {failure.says}" for failure in failures]
    whole["study"] = dataclasses.asdict(study)
    text = markdown(whole)
    write_durably(folder / f"{name}.json", json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
    write_durably(folder / f"{name}.md", text)
    if whole["curves"]:
        draw(whole, folder / f"{name}.svg")
    emit(text.rstrip("\n"))
    say(f"written: {folder}/{name}.md, .json" + (", .svg" if whole["curves"] else ""))


def edges(study: Study, folder: Path) -> dict[str, str]:
    """Return the end of its strengths, ``lowest`` or ``highest``, at which a method's best one lies in some world."""
    found = {}
    for finished in _worlds(study, folder).values():
        for curve in (_summary(study, finished) or {"curves": ()})["curves"]:
            if curve["edge"]:
                found[curve["method"]] = curve["edge"]
    return found


def _summary(study: Study, finished: dict[Setting, dict[int, Path]]) -> dict[str, Any] | None:
    """Return the summary of a world; ``None`` without a run of ``sft``."""
    from selfaug.study.scores import read_scores
    from selfaug.study.summary import summary

    if not any(setting.method == "sft" for setting in finished):
        return None
    return summary(read_scores(finished, study.task_metric))


def _worlds(study: Study, folder: Path) -> dict[Pairs, dict[Setting, dict[int, Path]]]:
    """Return the finished runs of each setting of each world by seed."""
    from selfaug.study.run import folder_of, is_finished

    worlds: dict[Any, dict[Setting, dict[int, Path]]] = {setting.world: {} for setting in study.points()}
    for one in study.runs():
        if is_finished(folder, study, one):
            worlds[one.setting.world].setdefault(one.setting, {})[one.seed] = folder_of(folder, one)
    return worlds


def _shift(run: Path) -> float:
    """Return KL(base ‖ tuned) at the prompt positions, in nats per token."""
    from selfaug.report.shifts import read_shift
    from selfaug.run.folder import RunFolder

    shift = read_shift(RunFolder(run))
    assert shift is not None
    return shift.regions["prompt"].base_to_tuned[0]
