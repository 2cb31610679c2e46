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

__all__ = ["show"]


def show(study: Study, folder: Path, name: str, failures: Sequence[Failure]) -> None:
    """Write ``NAME.json``, ``NAME.md`` and ``NAME.svg``, and the table to stdout.

    Args:
        study: Study whose runs are compared.
        folder: Folder of the comparison.
        name: Name of the files, without their endings.
        failures: Runs that failed and are missing.

    Raises:
        ConfigError: If no run of ``sft``, which the others are measured against, is finished. A single world without
            one is left out.
        DataError: If runs of a world were measured on different items.
    """
    from selfaug.common.files import write_durably
    from selfaug.study.grid import as_typed
    from selfaug.study.picture import draw
    from selfaug.study.scores import read_scores
    from selfaug.study.summary import joined, summary
    from selfaug.study.table import markdown

    summaries = {}
    for world, finished in _worlds(study, folder).items():
        if not any(setting.method == "sft" for setting in finished):
            continue
        world_summary = summary(read_scores(finished, study.task_metric))
        runs = {setting.label: folders for setting, folders in finished.items()}
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
    whole["failed"] = [f"{failure.run.name}: {failure.says}" for failure in failures]
    whole["study"] = dataclasses.asdict(study)
    text = markdown(whole)
    write_durably(folder / f"{name}.json", json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
    write_durably(folder / f"{name}.md", text)
    if whole["curves"]:
        draw(whole, folder / f"{name}.svg")
    emit(text.rstrip("\n"))
    say(f"written: {folder}/{name}.md, .json" + (", .svg" if whole["curves"] else ""))


def _worlds(study: Study, folder: Path) -> dict[Pairs, dict[Setting, list[Path]]]:
    """Return the finished runs of each setting of each world."""
    from selfaug.study.run import folder_of, is_finished

    worlds: dict[Any, dict[Setting, list[Path]]] = {setting.world: {} for setting in study.points()}
    for one in study.runs():
        if is_finished(folder, study, one):
            worlds[one.setting.world].setdefault(one.setting, []).append(folder_of(folder, one))
    return worlds


def _shift(run: Path) -> float:
    """Return KL(base ‖ tuned) at the prompt positions, in nats per token."""
    from selfaug.report.shifts import read_shift
    from selfaug.run.folder import RunFolder

    shift = read_shift(RunFolder(run))
    assert shift is not None
    return shift.regions["prompt"].base_to_tuned[0]
