"""Disks of several machines: whether they share the folders of a run, and what is refused where they do not.

A folder is shared if every process finds what the first one writes there. On disks of their own all machines keep whole
checkpoints, each with the states of its processes, and resume from the same one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.cli.outputs import check_writable
from selfaug.common.errors import ConfigError
from selfaug.common.ranks import in_every_process, machines, share_a_disk
from selfaug.common.terminal import say
from selfaug.run.checkpoint import read_seal, resolve

if TYPE_CHECKING:
    from selfaug.cli.parsing import Settings
    from selfaug.run.folder import RunFolder

__all__ = ["resumed_checkpoint", "settle_disks"]


def settle_disks(settings: Settings, folder: RunFolder) -> None:
    """Make every machine keep its own checkpoints where ``output_dir`` is on a disk of each machine.

    Raises:
        ConfigError: If the machines share ``output_dir`` and would overwrite each other's files, or do not share a
            folder that has to be shared.
    """
    training = settings.training
    if machines() == 1:
        return
    in_every_process(lambda: check_writable(folder.path))
    if training.reference_cache is not None and not share_a_disk(Path(training.reference_cache)):
        raise ConfigError(
            f"reference_cache={training.reference_cache!r} is on a disk of each machine, and each would look for "
            "hidden states that another one wrote",
            "name a folder on a disk that all machines share.",
        )
    if share_a_disk(folder.path):
        if training.save_on_each_node:
            raise ConfigError(
                f"save_on_each_node is set and all machines share output_dir {str(folder.path)!r}, so they would write "
                "the same files at once",
                "leave save_on_each_node out; it is set where output_dir is on a disk of each machine.",
            )
        return
    _refuse_on_own_disks(training, folder.path)
    training.save_on_each_node = True
    say(
        f"output_dir {folder.path} is on a disk of each machine: each keeps its checkpoints there; settings, log and "
        "adapter are on the first."
    )


def _refuse_on_own_disks(training: Any, path: Path) -> None:
    split = training.fsdp or training.deepspeed
    split = split or "true" in map(os.environ.get, ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"))
    changes = training.changes
    asks = changes.generates or changes.weigh or changes.fisher or changes.start or changes.rewrite
    if split or asks:
        why = (
            "with FSDP or ZeRO a checkpoint has parts from all of them"
            if split
            else f"method {training.method!r} keeps there what the base says before the first step, for all processes"
        )
        raise ConfigError(
            f"output_dir {str(path)!r} is on a disk of each machine, and {why}",
            "name a folder on a disk that all machines share.",
        )


def resumed_checkpoint(settings: Settings, folder: RunFolder) -> Path | None:
    """Return this process's checkpoint to resume from, after all processes have found the same one.

    Raises:
        ConfigError: As :func:`selfaug.run.checkpoint.resolve`, or if machines have different checkpoints.
    """
    from accelerate import PartialState

    def find() -> tuple[Path | None, int]:
        path = resolve(settings.training.resume_from_checkpoint, folder.checkpoints)
        return path, 0 if path is None else int(read_seal(path).get("num_tokens", 0))

    found = in_every_process(find)
    if len({(path and path.name, tokens) for path, tokens in found}) > 1:
        listed = "; ".join(f"process {rank}: {path.name if path else 'none'}" for rank, (path, _) in enumerate(found))
        raise ConfigError(
            f"the machines would resume from different checkpoints ({listed}), since output_dir is on a disk of each",
            "name one that all of them hold: --resume_from_checkpoint FOLDER/checkpoint-N, or copy the missing files.",
        )
    own: Path | None = found[PartialState().process_index][0]
    return own
