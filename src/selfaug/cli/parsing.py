"""The settings of `selfaug train`: every flag of `trl sft`, from the command line over a YAML file.

Flags come from the same data classes that ``trl sft`` reads, with ``SelfAugConfig`` in the place of ``SFTConfig``. What
neither they nor ``accelerate launch`` know is an error that names the near one.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import os
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from selfaug.cli.launch import LaunchFlags
from selfaug.cli.options import AUTO, DIFFERENT_DEFAULTS, RunArguments
from selfaug.cli.refusal import refused
from selfaug.cli.yaml_file import check_value, read_settings
from selfaug.common.errors import ConfigError, UserError, nearest
from selfaug.common.quiet import FLAG
from selfaug.common.redaction import is_secret, redacted
from selfaug.lab import shipped

if TYPE_CHECKING:
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    from selfaug.training.config import SelfAugConfig

__all__ = ["DIFFERENT_DEFAULTS", "Arguments", "Settings", "build", "build_parser", "default_values", "parse"]


# A secret, and what was asked of one call: none belongs to the settings that a run is known by.
_NOT_OF_THE_RUN = frozenset({"hub_token", "resume_from_checkpoint", "overwrite_output_dir", "full_weight_hash"})


@dataclass
class Settings:
    """Everything that `selfaug train` was asked for, typed."""

    script: ScriptArguments
    training: SelfAugConfig
    model: ModelConfig
    mixture: DatasetMixtureConfig
    run: RunArguments
    resolved: dict[str, Any]


@dataclass
class Arguments:
    """Values by name, before they become data classes, and what is for ``accelerate launch``.

    Args:
        values: Every flag of the parser, with defaults filled in.
        given: Names that the user set, on the command line or in the file.
        launch: Flags for ``accelerate launch``.
    """

    values: dict[str, Any]
    given: frozenset[str]
    launch: list[str]


def data_classes() -> tuple[type, ...]:
    """The data classes whose fields are the flags, in the order of the help."""
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    from selfaug.training.config import SelfAugConfig

    return ScriptArguments, SelfAugConfig, ModelConfig, DatasetMixtureConfig, RunArguments


def default_values() -> dict[str, Any]:
    """The default of each setting that has one of its own."""
    fields = [entry for data_class in data_classes() for entry in dataclasses.fields(data_class)]
    return {entry.name: entry.default for entry in fields if entry.default is not dataclasses.MISSING}


def build_parser() -> argparse.ArgumentParser:
    """TRL's parser over our data classes, with our defaults and our way of complaining."""
    from trl import TrlParser

    class TrainParser(TrlParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(message, "`selfaug train --help` lists every flag and its values.")

    parser: argparse.ArgumentParser = TrainParser(
        data_classes(),
        prog="selfaug train",
        allow_abbrev=False,
        description="Fine-tune a model on RAG data. Takes every flag of `trl sft` and of `accelerate launch`.",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of these settings; flags override it.")
    parser.add_argument(FLAG, action="store_true", help="Show all that other libraries print and warn of.")
    for name, different in DIFFERENT_DEFAULTS.items():
        _action(parser, name).default = different.ours
    _action(parser, "max_length").type = _max_length
    resume = _action(parser, "resume_from_checkpoint")
    resume.nargs, resume.const = "?", "true"
    return parser


def parse(argv: Sequence[str]) -> Arguments:
    """Read flags, and the YAML file that ``--config`` names, into values.

    Keys of the file are the flags' names; ``env`` sets environment variables as in trl.

    Raises:
        ConfigError: For an unknown flag or key (with the near one), a wrong type or choice, a missing file.
    """
    words, file = _take_config(list(argv))
    settings = read_settings(file) if file is not None else {}
    # Before torch and the hub's client are imported: they read the environment once.
    os.environ.update(_environment(settings.pop("env", {}), file))
    parser = build_parser()
    hints: dict[str, Any] = {}
    for data_class in data_classes():
        hints.update(typing.get_type_hints(data_class))
    launch = LaunchFlags()
    launch_words: list[str] = []
    names = [name for name in hints if any(action.dest == name for action in parser._actions)]
    for key, value in settings.items():
        if key in names:
            _action(parser, key).default = check_value(_action(parser, key), hints[key], value, f"{file}: {key}")
        elif launch.knows(key):
            launch_words += launch.words(key, value, f"{file}: {key}")
        else:
            close = nearest(key, [*names, *launch.names()])
            raise ConfigError(
                f"{file}: {key!r} is not a setting of `selfaug train`.{close}",
                "remove or correct the key; `selfaug train --help` lists every setting.",
            )
    namespace, unknown = parser.parse_known_args(words)
    flags = [flag for action in parser._actions for flag in action.option_strings]
    launch_words += launch.take(unknown, flags)
    launch.check(launch_words)
    values = {name: getattr(namespace, name) for name in names}
    given = frozenset(key for key in settings if key in names) | _given_flags(parser, words)
    return Arguments(_normal(values), given, launch_words)


def _given_flags(parser: argparse.ArgumentParser, words: Sequence[str]) -> frozenset[str]:
    flags = {flag: action.dest for action in parser._actions for flag in action.option_strings}
    return frozenset(flags[name] for name in (word.split("=")[0] for word in words) if name in flags)


def _normal(values: dict[str, Any]) -> dict[str, Any]:
    # Local paths become absolute: the run's config.yaml and the adapter must work from any folder.
    for name in ("model_name_or_path", "dataset_name", "eval_dataset", "chat_template_path", "renderer", "reference"):
        value = values.get(name)
        if name == "reference" and value in ("base", "initial"):
            continue  # words of the setting, also where a folder has that name
        if name in ("model_name_or_path", "reference") and isinstance(value, str):
            values[name] = value = shipped.resolve(value)
        if isinstance(value, str) and Path(value).expanduser().exists():
            values[name] = str(Path(value).expanduser().resolve())
    if values["reference_cache"] is not None:  # may be made by the run itself
        values["reference_cache"] = str(Path(values["reference_cache"]).expanduser().resolve())
    values["output_dir"] = str(Path(values["output_dir"] or "trainer_output").expanduser().resolve())
    if values["bf16"] is None:
        from transformers.utils import is_torch_bf16_gpu_available

        values["bf16"] = not values["fp16"] and not values["use_cpu"] and bool(is_torch_bf16_gpu_available())
    return values


def build(values: Mapping[str, Any]) -> Settings:
    """Turn values into the data classes, which check what belongs together.

    Raises:
        ConfigError: If a value or a combination is refused.
    """
    for entry in values["datasets"]:
        _check_mixture(entry)
    resolved = {name: redacted(_plain(value)) for name, value in values.items() if name not in _NOT_OF_THE_RUN}
    built: list[Any] = []
    for data_class in data_classes():
        fields = {entry.name for entry in dataclasses.fields(data_class) if entry.init}
        chosen = {name: copy.deepcopy(value) for name, value in values.items() if name in fields}
        try:
            built.append(data_class(**chosen))
        except UserError:
            raise
        except (ValueError, TypeError, NotImplementedError, ImportError, OSError) as error:
            raise refused(error, (), values) from error
    script, training, model, mixture, run = built
    # What a preset or method chose is part of the settings that the run is known by.
    own = {entry.name for entry in dataclasses.fields(type(training))}
    own -= {entry.name for entry in dataclasses.fields(type(training).__mro__[1])}
    resolved |= {name: redacted(_plain(getattr(training, name))) for name in sorted(own & resolved.keys())}
    return Settings(script, training, model, mixture, run, resolved)


def _check_mixture(entry: Any) -> None:
    from trl.scripts.utils import DatasetConfig

    known = [field.name for field in dataclasses.fields(DatasetConfig)]
    for key in entry if isinstance(entry, dict) else ():
        if key not in known:
            close = nearest(str(key), known)
            raise ConfigError(
                f"datasets: {key!r} is not a key of an entry.{close}", f"the keys are {', '.join(known)}."
            )
    if isinstance(entry, dict) and "path" not in entry:
        raise ConfigError(f"datasets: the entry {entry!r} has no path", "name the data set or file with `path:`.")


def _take_config(words: list[str]) -> tuple[list[str], Path | None]:
    file = None
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name != "--config":
            kept.append(word)
            continue
        value = value if equals else next(rest, "")
        if file is not None or not value:
            what = "is given twice" if value else "names no file"
            raise ConfigError(f"--config {what}", "pass one YAML file: --config settings.yaml.")
        file = Path(value).expanduser()
    return kept, file


def _environment(value: Any, file: Path | None) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ConfigError(
            f"{file}: env is {value!r}, not a mapping", "write variables below it, as in `env: {NCCL_DEBUG: INFO}`."
        )
    return {str(name): str(inner) for name, inner in value.items()}


def _action(parser: argparse.ArgumentParser, name: str) -> argparse.Action:
    return next(action for action in parser._actions if action.dest == name)


def _max_length(text: str) -> int | str | None:
    if text.lower() in ("none", "null"):
        return None
    return AUTO if text.lower() == AUTO else int(text)


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items() if not is_secret(str(key))}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 10 and 10.0 are one setting
    return value
