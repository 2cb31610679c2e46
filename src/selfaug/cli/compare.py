"""`selfaug compare`: trains and measures methods side by side on the user's data, with intervals.

Every method is trained at the same number of strengths and with the same seeds, in ordinary run folders. The output is
a table, a figure and a sentence. A comparison can be stopped and resumed at any time; finished runs are never repeated.
Flags that `compare` does not know are flags of `selfaug train`, the same for all runs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.cli.compare_study import Measuring, check_measured, check_run, devices_of, study_of
from selfaug.cli.config import Call, Command
from selfaug.cli.outputs import check_writable
from selfaug.common.errors import ConfigError
from selfaug.common.options import REQUIRED, option
from selfaug.common.terminal import say

if TYPE_CHECKING:
    from selfaug.study.grid import Study

__all__ = ["COMMAND", "Settings", "run", "train_words"]


@dataclass
class _Comparison:
    """What it adds to the settings of measuring."""

    output_dir: str = option(REQUIRED, "Folder of the comparison.", group="Comparison", metavar="FOLDER")
    methods: list[str] = option(REQUIRED, "Methods, or combinations a+b; sft is always included.", metavar="NAME")
    name: str = option(
        "comparison", "Name of the output files, where comparisons share a folder and runs.", metavar="NAME"
    )
    seeds: int = option(3, "Number of seeds, from 0.")
    processes: int | None = option(None, "Number of runs at a time; on GPUs each has one.", shown="one a GPU, or 1")
    settings: int = option(3, "Number of strengths of each method.", group="Strengths and options")
    widen: int = option(
        0,
        "Further strengths of a method at most, tried one at a time while its best one is the lowest or the highest: "
        "its optimum is then inside.",
    )
    strengths: list[str] | dict[str, Any] | None = option(
        None, "Strengths of a method in place of its own: selfaug=0.5,2,8.", metavar="METHOD=VALUES"
    )
    options: list[str] | dict[str, Any] | None = option(
        None, "Further options of a method: replay.replay_data=texts.jsonl.", metavar="METHOD.NAME=VALUE"
    )
    grid: list[str] | dict[str, Any] | None = option(
        None, "Option of `selfaug train` and its values: align_fraction=1,0.125.", metavar="NAME=VALUES"
    )
    task_metric: str | None = option(
        None, "Metric of the task's axis, such as answer_nll.", group="Axes", metavar="NAME", shown="the primary one"
    )
    shift: bool = option(False, "Also measure how far each run moved the model on the prompts of the data.")


@dataclass
class Settings(Measuring, _Comparison):
    """Settings of `selfaug compare`."""


COMMAND = Command(
    "compare",
    Settings,
    __doc__ or "",
    (
        "selfaug compare --output_dir studies/mine --methods selfaug wise-ft --general quick --data held_out.jsonl "
        "--model_name_or_path lab --dataset_name train.jsonl",
        "selfaug compare --config configs/studies/alpha.yaml --output_dir studies/alpha --methods selfaug "
        "--model_name_or_path lab --dataset_name train.jsonl --general_data news.txt",
    ),
    takes_others=True,
)


def run(call: Call[Settings]) -> int:
    """Check every run, run the missing ones, show the results, and return the exit code (1 where a run failed)."""
    settings = call.settings
    folder, name = Path(settings.output_dir).expanduser().resolve(), settings.name
    if not name or name.startswith(".") or "/" in name or (folder / name).is_dir():
        raise ConfigError(f"name={name!r} is no name for files in {folder}", "give a plain one, such as alpha.")
    study = study_of(settings, train_words(call))
    check_writable(folder)
    other_losses = _check(study)
    from selfaug.cli.compare_shown import edges, show
    from selfaug.study.run import run_all

    folder.mkdir(parents=True, exist_ok=True)
    say(f"{len(study.points())} settings with {len(study.seeds)} seeds each in {folder}")
    say("how far a run is stands in its runs/*/study.log")
    failures = run_all(study, folder, devices=devices_of(settings.processes), say=say)
    for _ in range(settings.widen):
        wider = study if failures else study.widened(edges(study, folder))
        if wider.points() == study.points():
            break
        say(f"further strengths: {', '.join(s.label for s in wider.points() if s not in study.points())}")
        _check(wider)
        study, failures = wider, run_all(wider, folder, devices=devices_of(settings.processes), say=say)
    show(study, folder, name, failures, other_losses=other_losses)
    return 1 if failures else 0


def train_words(call: Call[Any]) -> list[str]:
    """Return the words for `selfaug train`: keys of the file as flags, then typed flags, which override them."""
    words = []
    for name, value in call.keys.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(one if isinstance(one, str) else json.dumps(one) for one in values)]
    return [*words, *call.words]


def _check(study: Study) -> list[str]:
    """Check that every setting can be trained, and return the methods that do not minimise the NLL of responses."""
    check_measured(study.evaluate)
    facts: dict[str, Any] = {}
    other_losses: list[str] = []
    for one in study.runs()[: len(study.points())]:
        if not check_run(one, facts).training.changes.minimises_nll and one.setting.method not in other_losses:
            other_losses.append(one.setting.method)
    return other_losses
