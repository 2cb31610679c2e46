"""How the processes that are about to be started will share the work, read from flags and configuration files."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from selfaug.common.errors import ConfigError
from selfaug.common.files import read_json
from selfaug.training.sharding import Sharding

__all__ = ["sharding_asked"]


def sharding_asked(parsed: Namespace, training: Any) -> Sharding:
    """Return how processes will share the work.

    Args:
        parsed: The flags of ``accelerate launch``, parsed.
        training: Settings of the run, which may ask for FSDP or DeepSpeed themselves.

    Raises:
        ConfigError: If a configuration file cannot be read.
    """
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    if training.fsdp:  # transformers has read fsdp_config, and taken the prefix off its keys
        given = training.fsdp_config
        return Sharding(f"fsdp{given.get('version', 2)}", _is_true(given.get("activation_checkpointing")))
    if training.deepspeed:
        return _zero(training.deepspeed)
    if parsed.use_deepspeed:
        return _zero(parsed.deepspeed_config_file or {"zero_optimization": {"stage": parsed.zero_stage or 2}})
    if parsed.use_fsdp:
        return Sharding(f"fsdp{parsed.fsdp_version or 1}", _is_true(parsed.fsdp_activation_checkpointing))
    if parsed.config_file is None and not Path(default_config_file).is_file():
        return Sharding("ddp")
    try:
        config = load_config_from_file(parsed.config_file)
    except Exception as error:  # it may hold anything
        raise ConfigError(
            f"the accelerate configuration {parsed.config_file or default_config_file} cannot be read: {error}",
            "write it with `accelerate config`, or correct it.",
        ) from error
    kind = str(getattr(config.distributed_type, "value", config.distributed_type))
    if kind == "FSDP":
        given = config.fsdp_config
        return Sharding(f"fsdp{given.get('fsdp_version', 1)}", _is_true(given.get("fsdp_activation_checkpointing")))
    if kind != "DEEPSPEED":
        return Sharding("ddp")
    given = config.deepspeed_config
    return _zero(given.get("deepspeed_config_file") or {"zero_optimization": {"stage": given.get("zero_stage", 2)}})


def _is_true(value: Any) -> bool:
    return str(value).lower() in ("true", "1")


def _zero(config: Any) -> Sharding:
    """Return what a DeepSpeed configuration asks for, or the JSON file that holds it."""
    if not isinstance(config, dict):
        config = read_json(Path(str(config)), hint="correct the path or the file.", error=ConfigError)
    stage = int((config.get("zero_optimization") or {}).get("stage", 0))
    return Sharding(f"zero{stage}")
