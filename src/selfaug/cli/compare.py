"""`selfaug compare`: methods side by side, on your data, with intervals.

Every method is trained at the same number of its strengths and with the same seeds, as ordinary run folders; then a
table, a picture and a sentence. Stopped at any time, it goes on where it was; finished runs are never repeated. What
`compare` does not know is a flag of `selfaug train`, the same for all runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.cli.compare_study import MEASURING, study_of
from selfaug.cli.outputs import check_writable
from selfaug.cli.verb_options import Add, adder, switch
from selfaug.common.errors import ConfigError
from selfaug.common.terminal import say

if TYPE_CHECKING:
    from selfaug.study.grid import Study

__all__ = ["READS_ITS_OWN_ARGUMENTS", "add_parser", "run"]

READS_ITS_OWN_ARGUMENTS = True
_OWN = (
    "output_dir", "name", "methods", "seeds", "settings", "strengths", "options", "grid", "processes", "task_metric",
    "shift",
)  # fmt: skip
_NAME = "comparison"


def _flags(parser: argparse.ArgumentParser) -> None:
    add: Add = adder(parser)
    add("output_dir", "folder of the comparison", metavar="FOLDER")
    add("name", f"of the table and picture, where comparisons share a folder and runs (default: {_NAME})",
        metavar="NAME")  # fmt: skip
    add("methods", "names, or combinations a+b; sft is always among them", nargs="+", metavar="NAME")
    add("seeds", "how many, from 0 (default: 3)", type=int, metavar="N")
    add("settings", "strengths of each method (default: 3)", type=int, metavar="N")
    add("strengths", "chosen by hand: selfaug=0.5,2,8", nargs="+", metavar="METHOD=VALUES")
    add(
        "options", "further options of a method: replay.replay_data=texts.jsonl", nargs="+", metavar="METHOD.NAME=VALUE"
    )
    add("grid", "a train option and its values: align_fraction=1,0.125", nargs="+", metavar="NAME=VALUES")
    add("processes", "runs at a time; on GPUs each has one (default: one a GPU, or 1)", type=int, metavar="N")
    add("task_metric", "of the task's axis, such as answer_nll (default: the primary one)", metavar="NAME")
    add("shift", "measure, too, how far each run moved the model on the prompts of the data (default: false)",
        type=switch, nargs="?", const=True, metavar="true|false")  # fmt: skip
    add("data", "records to answer, as for evaluate", nargs="+", metavar="PATH")
    add("general", "general tasks, as for evaluate", nargs="+", metavar="NAME")
    add("general_data", "texts for nats per token, as for evaluate", nargs="+", metavar="FILE")
    add("general_limit", "items of each general task", type=int, metavar="N")
    add("max_new_tokens", "longest answer", type=int, metavar="N")
    add("batch_size", "prompts at a time when measuring", type=int, metavar="N")
    add("limit", "first records of the data", type=int, metavar="N")


def add_parser(subparsers: Any) -> None:
    """The flags of the verb."""
    _flags(subparsers.add_parser("compare", help="methods side by side on your data", description=__doc__))


def run(args: argparse.Namespace) -> int:
    """Check every run, run what is missing, show; the exit code (1 where a run failed)."""
    settings, train = _settings(args.argv)
    if not settings.get("output_dir"):
        raise ConfigError("no output_dir is given", "name the comparison's folder: --output_dir FOLDER.")
    folder, name = Path(settings["output_dir"]).expanduser().resolve(), str(settings.get("name", _NAME))
    if not name or name.startswith(".") or "/" in name or (folder / name).is_dir():
        raise ConfigError(f"name={name!r} is no name for files in {folder}", "give a plain one, such as alpha.")
    study = study_of(settings, train)
    check_writable(folder)
    _check(study)
    from selfaug.cli.compare_shown import show
    from selfaug.study.run import run_all

    folder.mkdir(parents=True, exist_ok=True)
    say(f"{len(study.points())} settings with {len(study.seeds)} seeds each in {folder}")
    say("how far a run is stands in its runs/*/study.log")
    failures = run_all(study, folder, devices=_devices(settings.get("processes")), say=say)
    show(study, folder, name, failures)
    return 1 if failures else 0


def _settings(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The verb's own settings (flags, then the file), and the words that are for `train`."""
    from selfaug.cli.main import Parser
    from selfaug.cli.yaml_file import read_settings

    parser = Parser(prog="selfaug compare")
    _flags(parser)
    known, words = parser.parse_known_args(list(argv))
    given = vars(known)
    own: dict[str, Any] = {}
    if "config" in given:
        for name, value in read_settings(Path(given.pop("config")).expanduser()).items():
            if name in (*_OWN, *MEASURING):
                own[name] = value
            else:
                # Flags of `train` that are typed come later, and so go before the file.
                values = value if isinstance(value, list) else [value]
                words = [f"--{name}", *(v if isinstance(v, str) else json.dumps(v) for v in values), *words]
    return {**own, **given}, list(words)


def _check(study: Study) -> None:
    """Whether every setting can be trained: said now, and not hours later."""
    from selfaug.cli.parsing import parse
    from selfaug.cli.train import settle
    from selfaug.common.files import missing_path
    from selfaug.run.model_source import check_model, looks_local

    flag = ""
    for word in study.evaluate:
        if word.startswith("--"):
            flag = word.removeprefix("--")
        elif flag in ("data", "general_data") and looks_local(word) and not Path(word).exists():
            raise missing_path(flag, word, "check the path.")
    facts: dict[str, Any] = {}
    for one in study.runs()[: len(study.points())]:
        arguments = parse([*one.train, "--output_dir", "unused"])
        values, model = arguments.values, str(arguments.values["model_name_or_path"])
        data = str(values["dataset_name"])
        if looks_local(data) and not Path(data).exists():
            raise missing_path("dataset_name", data, "check the path; a data set of the hub has the form owner/name.")
        if model not in facts:
            facts[model] = check_model(values["model_name_or_path"], revision=values["model_revision"],
                                       trust_remote_code=values["trust_remote_code"])  # fmt: skip
        try:
            settle(arguments, facts[model])
        except ConfigError as error:
            raise ConfigError(f"{one.setting.label}: {error.message}", error.hint) from None


def _devices(processes: int | None) -> list[str | None]:
    import torch

    if processes is not None and processes < 1:
        raise ConfigError(f"processes={processes} runs nothing.", "give 1 or more.")
    gpus = torch.cuda.device_count()
    count = processes or max(1, gpus)
    return [str(i % gpus) if gpus else None for i in range(count)]
