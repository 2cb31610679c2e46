"""The settings of `selfaug train` from command line and YAML, with every flag of `trl sft` and `accelerate launch`.

Flags come from the data classes of ``trl sft``, with ``SelfAugConfig`` in place of ``SFTConfig``. An unknown flag is an
error that names a similar one.
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

from selfaug.cli.config import (
    Command,
    Option,
    build_parser,
    options_of,
    read_words,
    resolved,
    take_config,
    under_present_names,
)  # fmt: skip
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


# A secret, and flags of a single call, do not identify a run.
_NOT_OF_THE_RUN = frozenset(
    {"hub_token", "resume_from_checkpoint", "overwrite_output_dir", "full_weight_hash", "dry_run"}
)

# trl's parser changes these defaults, and the settings of runs to be resumed hold the changed values.
_AS_TRL_READS = {"debug": None, "include_num_input_tokens_seen": False}


@dataclass
class Settings:
    """The settings of `selfaug train`, as data classes."""

    script: ScriptArguments
    training: SelfAugConfig
    model: ModelConfig
    mixture: DatasetMixtureConfig
    run: RunArguments
    resolved: dict[str, Any]


@dataclass
class Arguments:
    """Values by name, before they become data classes, and the flags for ``accelerate launch``.

    Args:
        values: Value of every flag, defaults included.
        given: Names of the flags that the user set, on the command line or in the file.
        launch: Flags for ``accelerate launch``.
    """

    values: dict[str, Any]
    given: frozenset[str]
    launch: list[str]


def data_classes() -> tuple[type, ...]:
    """Return the data classes of the values, in the order of :class:`Settings`."""
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    from selfaug.training.config import SelfAugConfig

    return ScriptArguments, SelfAugConfig, ModelConfig, DatasetMixtureConfig, RunArguments


def default_values() -> dict[str, Any]:
    """Return the default of each setting whose data class states one."""
    fields = [entry for data_class in data_classes() for entry in dataclasses.fields(data_class)]
    return {entry.name: entry.default for entry in fields if entry.default is not dataclasses.MISSING}


def options() -> dict[str, Option]:
    """Return every option of `selfaug train`: those of the short help first, then the rest of TRL's by data class.

    Options of TRL keep their types and choices; those of the short help have our defaults and texts.
    """
    short = options_of(*SHORT_HELP)
    of_devices = options_of(Devices)
    library = options_of(*data_classes())
    merged = {
        name: replace(library[name], default=one.default, group=one.group, about={**library[name].about, **one.about})
        for name, one in short.items()
        if name not in of_devices  # accelerate's parser takes them
    }
    merged |= {name: one for name, one in library.items() if name not in merged}
    return merged | {name: replace(merged[name], default=default) for name, default in _AS_TRL_READS.items()}


def print_all_help(command: Command[Any]) -> None:
    """Print the help with every flag except those of `accelerate launch`."""
    from selfaug.methods import available

    about = f"{command.about}\n\nMethods: {', '.join(available())}."
    build_parser(replace(command, about=about), {**options(), **options_of(Devices)}).print_help()


def parse(argv: Sequence[str]) -> Arguments:
    """Read flags, and the YAML file that ``--config`` names, into values.

    Keys of the file are the names of flags; ``env`` sets environment variables as in trl.

    Raises:
        ConfigError: If a flag or key is unknown (with a similar name), a type or value is wrong, or a file is missing.
    """
    words, path = take_config(argv)
    keys = read_settings(path) if path is not None else {}
    # This must precede the import of torch and the hub's client, which read the environment only once.
    os.environ.update(_environment(keys.pop("env", {}), path))
    known = options()
    keys = under_present_names(keys, known, path)
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
    # The run's config.yaml and the adapter must work from any folder, so local paths become absolute.
    for name in ("model_name_or_path", "dataset_name", "eval_dataset", "chat_template_path", "renderer", "reference"):
        value = values.get(name)
        if name == "reference" and value in ("base", "initial"):
            continue  # a keyword of the setting, even if a folder has the same name
        if name in ("model_name_or_path", "reference") and isinstance(value, str):
            values[name] = value = shipped.resolve(value)
        if isinstance(value, str) and Path(value).expanduser().exists():
            values[name] = str(Path(value).expanduser().resolve())
    if values["reference_cache"] is not None:  # need not exist yet: the run can make it
        values["reference_cache"] = str(Path(values["reference_cache"]).expanduser().resolve())
    values["output_dir"] = str(Path(values["output_dir"] or "trainer_output").expanduser().resolve())
    if values["bf16"] is None:
        from transformers.utils import is_torch_bf16_gpu_available

        values["bf16"] = not values["fp16"] and not values["use_cpu"] and bool(is_torch_bf16_gpu_available())
    return values


def build(values: Mapping[str, Any]) -> Settings:
    """Make the data classes from values; they check combinations.

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
    # Values chosen by a preset or method belong to the settings that identify the run.
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
        return int(value)  # 10 and 10.0 are the same setting
    return value
