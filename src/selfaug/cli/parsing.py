"""The settings of `selfaug train`: every flag of `trl sft` and `accelerate launch`, from the command line over YAML.

Flags come from the same data classes that ``trl sft`` reads, with ``SelfAugConfig`` in the place of ``SFTConfig``. What
neither they nor ``accelerate launch`` know is an error that names the near one.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.cli.config import Command, Option, build_parser, options_of, read_words, resolved, take_config
from selfaug.cli.launch import LaunchFlags
from selfaug.cli.options import SHORT_HELP, TRAIN, Devices, RunArguments
from selfaug.cli.refusal import refused
from selfaug.cli.yaml_file import read_settings
from selfaug.common.errors import ConfigError, UserError, nearest
from selfaug.common.redaction import is_secret, redacted
from selfaug.lab import shipped
from selfaug.training.options import OWN_OPTIONS

if TYPE_CHECKING:
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    from selfaug.training.config import SelfAugConfig

__all__ = ["Arguments", "Settings", "build", "default_values", "options", "parse", "print_all_help"]


# A secret, and what was asked of one call: none belongs to the settings that a run is known by.
_NOT_OF_THE_RUN = frozenset({"hub_token", "resume_from_checkpoint", "overwrite_output_dir", "full_weight_hash"})

# What trl's parser makes of its own defaults; so they stand in the settings of finished runs, which may go on.
_AS_TRL_READS = {"debug": None, "include_num_input_tokens_seen": False}


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
    """The data classes that the values become, in the order of :class:`Settings`."""
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    from selfaug.training.config import SelfAugConfig

    return ScriptArguments, SelfAugConfig, ModelConfig, DatasetMixtureConfig, RunArguments


def default_values() -> dict[str, Any]:
    """The default of each setting that has one of its own."""
    fields = [entry for data_class in data_classes() for entry in dataclasses.fields(data_class)]
    return {entry.name: entry.default for entry in fields if entry.default is not dataclasses.MISSING}


def options() -> dict[str, Option]:
    """Every option of `selfaug train`: those of the short help first, then the rest of TRL's by data class.

    What TRL knows has its type and choices; the short help has our defaults and words.
    """
    short = options_of(*SHORT_HELP)
    of_devices = options_of(Devices)
    theirs = options_of(*data_classes())
    found = {
        name: replace(theirs[name], default=one.default, group=one.group, about={**theirs[name].about, **one.about})
        for name, one in short.items()
        if name not in of_devices  # accelerate's parser reads them
    }
    found |= {name: one for name, one in theirs.items() if name not in found}
    return found | {name: replace(found[name], default=default) for name, default in _AS_TRL_READS.items()}


def print_all_help(command: Command[Any]) -> None:
    """Print the help with every flag but those of `accelerate launch`."""
    from selfaug.methods import available

    about = f"{command.about}\n\nMethods: {', '.join(available())}."
    build_parser(replace(command, about=about), {**options(), **options_of(Devices)}).print_help()


def parse(argv: Sequence[str]) -> Arguments:
    """Read flags, and the YAML file that ``--config`` names, into values.

    Keys of the file are the flags' names; ``env`` sets environment variables as in trl.

    Raises:
        ConfigError: For an unknown flag or key (with the near one), a wrong type or choice, a missing file.
    """
    words, path = take_config(argv)
    keys = read_settings(path) if path is not None else {}
    # Before torch and the hub's client are imported: they read the environment once.
    os.environ.update(_environment(keys.pop("env", {}), path))
    known = options()
    launch = LaunchFlags()
    launch_words: list[str] = []
    file: dict[str, Any] = {}
    for key, value in keys.items():
        if key in known:
            file[key] = known[key].read(value, f"{path}: {key}")
        elif launch.knows(key):
            launch_words += launch.words(key, value, f"{path}: {key}")
        else:
            close = nearest(key, [*known, *launch.names()])
            raise ConfigError(
                f"{path}: {key!r} is not a setting of `selfaug train`.{close}",
                "remove or correct the key; `selfaug train --help-all` lists every setting.",
            )
    typed, unknown = read_words(build_parser(TRAIN, known), known, words)
    launch_words += launch.take(unknown, [f"--{name}" for name in known])
    launch.check(launch_words)
    return Arguments(_normal(resolved(known, typed, file)), frozenset(file) | frozenset(typed), launch_words)


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
    recorded = {name: redacted(_plain(value)) for name, value in values.items() if name not in _NOT_OF_THE_RUN}
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
    own = options_of(*OWN_OPTIONS)
    recorded |= {name: redacted(_plain(getattr(training, name))) for name in sorted(own.keys() & recorded.keys())}
    return Settings(script, training, model, mixture, run, recorded)


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


def _environment(value: Any, file: Path | None) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ConfigError(
            f"{file}: env is {value!r}, not a mapping", "write variables below it, as in `env: {NCCL_DEBUG: INFO}`."
        )
    return {str(name): str(inner) for name, inner in value.items()}


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
