"""The study that the settings of `selfaug compare` describe, with checks before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.common.errors import ConfigError, nearest
from selfaug.common.options import option

if TYPE_CHECKING:
    from selfaug.cli.compare import Settings
    from selfaug.cli.parsing import Settings as Trained
    from selfaug.study.grid import Run, Study

__all__ = [
    "MEASURING",
    "Measuring",
    "absolute",
    "check_measured",
    "check_run",
    "devices_of",
    "measuring_words",
    "shared_options",
    "study_of",
]


@dataclass
class Measuring:
    """Settings that are passed to `selfaug evaluate`."""

    data: list[str] = option(
        [],
        "Records to answer.",
        group="Measuring (as for `selfaug evaluate`)",
        metavar="PATH",
        shown="what the runs hold out",
    )
    general: list[str] = option([], "General tasks.", metavar="NAME")
    general_data: list[str] = option([], "Texts for nats per token.", metavar="FILE")
    general_limit: int | None = option(None, "Number of items of each general task.")
    max_new_tokens: int | None = option(None, "Longest answer in tokens.")
    batch_size: int | None = option(None, "Prompts in a batch when measuring.")
    limit: int | None = option(None, "Number of records of the data, from the first.")


MEASURING = tuple(field.name for field in fields(Measuring))


def study_of(settings: Settings, train: Sequence[str]) -> Study:
    """Return the study that settings describe.

    Raises:
        ConfigError: If a value cannot be read.
    """
    from selfaug.cli.parsing import parse
    from selfaug.study.grid import Study, swept

    if settings.seeds < 1:
        raise ConfigError(f"seeds={settings.seeds} is no number of trainings.", "give 1 or more.")
    if not settings.general and not settings.general_data:
        raise ConfigError("nothing general is measured, and retention is an axis", "pass --general or --general_data.")
    grid = _pairs(settings.grid, "grid")
    for owned in ("--method", "--seed", "--output_dir", "--alpha", "--method_options"):
        if owned[2:] in grid or any(word == owned or word.startswith(f"{owned}=") for word in train):
            raise ConfigError(f"{owned} is what a comparison varies itself", "use --methods, --seeds or --strengths.")
    for method in settings.methods:
        if swept(method) in grid:
            raise ConfigError(
                f"grid: {swept(method)} is what the curve of {method} runs over, and has one value in each run.",
                f"choose its values by --strengths {method}=..., and leave it out of --grid.",
            )
    strengths, options = _pairs(settings.strengths, "strengths"), _options(settings.options)
    compared = ["sft", *settings.methods]
    for name, given in (("strengths", strengths), ("options", options)):
        for method in given:
            if method not in compared:
                raise ConfigError(
                    f"{name}: {method!r} is none of the methods that are compared.{nearest(method, compared)}",
                    f"they are {', '.join(compared)}; add it to --methods, or remove it.",
                )
    train = [*_worlds(grid, train), *train]
    values = parse([*train, "--output_dir", "unused"]).values
    if values["held_out"] is not None and not settings.data and settings.seeds > 1:
        raise ConfigError(
            "held_out draws other rows with each seed, and runs are compared on the same",
            "split once by `selfaug prepare`, and pass --data held_out.jsonl.",
        )
    if "max_length" in grid and values["max_length"] is None:
        raise ConfigError(
            "grid: max_length is varied, and runs that are trained without a limit are measured without one",
            "pass --max_length N, at which all of them are measured on the same rows.",
        )
    study = Study(
        methods=tuple(settings.methods),
        seeds=tuple(range(settings.seeds)),
        settings=settings.settings,
        train=tuple(absolute(train)),
        evaluate=measuring_words(settings),
        learning_rate=float(values["learning_rate"]),
        shift=_shift(settings),
        task_metric=settings.task_metric,
        strengths={method: [_number(method, value) for value in values] for method, values in strengths.items()},
        options=options,
        grid=grid,
        shared=_as_the_grid_says(shared_options(values, grid), grid),
    )
    trained = {run.name: run.train for run in study.runs()}
    for run in study.runs():
        if trained[run.name] != run.train:
            raise ConfigError(
                f"grid: two settings would have one folder, runs/{run.name}", "name files whose last two parts differ."
            )
    return study


def measuring_words(settings: Measuring) -> tuple[str, ...]:
    """Return the arguments of `selfaug evaluate` that the settings stand for."""
    measuring = {name: getattr(settings, name) for name in MEASURING}
    given = {name: value for name, value in measuring.items() if value not in (None, [])}
    return tuple(absolute(word for name, value in given.items() for word in _words(name, value)))


def check_measured(words: Sequence[str]) -> None:
    """Check that the files to measure on are there.

    Args:
        words: Arguments of `selfaug evaluate`.

    Raises:
        ConfigError: If one is missing.
    """
    from selfaug.common.files import missing_path
    from selfaug.run.model_source import looks_local

    flag = ""
    for word in words:
        if word.startswith("--"):
            flag = word.removeprefix("--")
        elif flag in ("data", "general_data") and looks_local(word) and not Path(word).exists():
            raise missing_path(flag, word, "check the path.")


def check_run(one: Run, facts: dict[str, Any]) -> Trained:
    """Check that a run can be trained, and return its settings.

    Args:
        one: Run.
        facts: What is known of each model; models that are met for the first time are added.

    Raises:
        ConfigError: If it cannot.
    """
    from selfaug.cli.parsing import parse
    from selfaug.cli.train import settle
    from selfaug.common.files import missing_path
    from selfaug.run.model_source import check_model, looks_local

    arguments = parse([*one.train, "--output_dir", "unused"])
    for name in ("resume_from_checkpoint", "overwrite_output_dir", "dry_run"):
        if name in arguments.given:
            raise ConfigError(
                f"--{name} is about one training, and here are many, each in a folder of its own",
                "leave it out: the same command again goes on where it was, and repeats no finished run.",
            )
    values, model = arguments.values, str(arguments.values["model_name_or_path"])
    data = str(values["dataset_name"])
    if looks_local(data) and not Path(data).exists():
        raise missing_path("dataset_name", data, "check the path; a data set of the hub has the form owner/name.")
    if model not in facts:
        facts[model] = check_model(values["model_name_or_path"], revision=values["model_revision"],
                                   trust_remote_code=values["trust_remote_code"])  # fmt: skip
    try:
        return settle(arguments, facts[model])
    except ConfigError as error:
        raise ConfigError(f"{one.setting.label}: {error.message}", error.hint) from None


def devices_of(processes: int | None) -> list[str | None]:
    """Return the GPU of each simultaneous run, or none on a CPU.

    Args:
        processes: Number of simultaneous runs; ``None`` for one a GPU, or one.

    Raises:
        ConfigError: If it is below 1.
    """
    import torch

    if processes is not None and processes < 1:
        raise ConfigError(f"processes={processes} runs nothing.", "give 1 or more.")
    gpus = torch.cuda.device_count()
    count = processes or max(1, gpus)
    return [str(i % gpus) if gpus else None for i in range(count)]


def shared_options(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return the values of options in runs without a grid, without those that only a method or preset sets."""
    from selfaug.training.config import PRESETS

    preset = PRESETS["default"] if values["preset"] == "default" else {}
    shared = {name: preset.get(name) if values.get(name) is None else values[name] for name in names}
    return {name: value for name, value in shared.items() if value is not None}


def _worlds(grid: dict[str, list[Any]], train: Sequence[str]) -> list[str]:
    """Return words that set each world option of the grid that has no value for all runs.

    The paths of these options in the grid become absolute.
    """
    from selfaug.study.grid import WORLD

    words = []
    for name in WORLD:
        if name in grid:
            grid[name] = absolute([str(value) for value in grid[name]])
            if not any(word.partition("=")[0].lstrip("-").replace("-", "_") == name for word in train):
                words += [f"--{name}", grid[name][0]]
    return words


def _as_the_grid_says(shared: dict[str, Any], grid: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Return the shared options with the model's name as the grid writes it: `lab` stands for a folder."""
    from selfaug.lab.shipped import resolve

    name = "model_name_or_path"
    same = [value for value in grid.get(name, ()) if resolve(value) == shared.get(name)]
    return {**shared, name: same[0]} if same else shared


def _shift(settings: Settings) -> tuple[str, ...] | None:
    """Return the words of `selfaug shift`, or ``None`` where the shift is not measured."""
    if not settings.shift:
        return None
    if len(settings.data) > 1:
        raise ConfigError(
            f"shift is measured on one file, and data names {len(settings.data)}", "name one, or leave --shift out."
        )
    return ("--layers", "false", *(f"--dataset_name={path}" for path in absolute(settings.data)))


def _words(name: str, value: Any) -> list[str]:
    return [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]


def absolute(words: Iterable[str]) -> list[str]:
    """Make paths of files and folders absolute, since a comparison may be resumed from another working directory."""
    paths = [(word, Path(word).expanduser()) for word in words]
    return [str(p.resolve()) if p.is_file() or ("/" in word and p.exists()) else word for word, p in paths]


def _pairs(given: Any, name: str) -> dict[str, list[Any]]:
    import yaml

    if given is None:
        return {}
    if isinstance(given, Mapping):
        return {str(key): list(value) if isinstance(value, list) else [value] for key, value in given.items()}
    pairs = {}
    for text in given:
        key, equals, values = str(text).partition("=")
        if not equals or not values:
            raise ConfigError(f"{name}: {text!r} is not of the form NAME=VALUE,VALUE", "write selfaug=0.5,2,8.")
        pairs[key] = [yaml.safe_load(value) for value in values.split(",")]
    return pairs


def _number(method: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"strengths: {value!r} of {method} is no number", "write selfaug=0.5,2,8.") from None


def _options(given: Any) -> dict[str, dict[str, Any]]:
    if isinstance(given, Mapping):
        return {str(method): dict(options) for method, options in given.items()}
    of_methods: dict[str, dict[str, Any]] = {}
    for key, values in _pairs(given, "options").items():
        method, dot, option = key.partition(".")
        if not dot:
            raise ConfigError(f"options: {key!r} names no option", "write replay.replay_data=texts.jsonl.")
        path = Path(str(values[0])).expanduser()
        of_methods.setdefault(method, {})[option] = str(path.resolve()) if path.exists() else values[0]
    return of_methods
