"""What processes of a distributed run do for one another: work of one for all, what each found, sums over all."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from selfaug.common.errors import ConfigError, UserError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["begin_reduce", "in_every_process", "machines", "once_per_machine", "share_a_disk"]

T = TypeVar("T")
_PATIENCE = timedelta(days=30)
"""Longest wait of the other processes: the first one may be reading millions of rows."""
_DELAY, _TRIES = 0.5, 8
"""Seconds between looks for a new file, and their number: network disks show it late to other machines."""


def in_every_process(make: Callable[[], T]) -> list[T]:
    """Return, in each process of the run, what ``make`` returns in each of them, by rank.

    A ``UserError`` of ``make`` is raised in every process of the run, so that all of them end and none waits.

    Args:
        make: Function whose result can be pickled.

    Raises:
        UserError: The error of ``make``; ``said_elsewhere`` is set in all processes but the one that met it.
    """
    import torch.distributed
    from accelerate import PartialState

    state = PartialState()
    if not torch.distributed.is_initialized():
        return [make()]
    group = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
    try:
        mine: tuple[Any, UserError | None] = make(), None
    except UserError as error:
        mine = None, error
    found: list[tuple[Any, UserError | None]] = [mine] * state.num_processes
    torch.distributed.all_gather_object(found, mine, group=group)
    torch.distributed.destroy_process_group(group)
    for rank, (_, mistake) in enumerate(found):
        if mistake is not None:
            mistake.said_elsewhere = rank != state.process_index
            raise mistake
    return [result for result, _ in found]


def once_per_machine(make: Callable[[], T]) -> T:
    """Return, in each process of this machine, what ``make`` returns in its first process.

    Args:
        make: Function whose result can be pickled.

    Raises:
        UserError: As :func:`in_every_process`.
    """
    from accelerate import PartialState

    state = PartialState()
    found = in_every_process(lambda: make() if state.is_local_main_process else None)
    result: Any = found[state.process_index - state.local_process_index]
    return result  # type: ignore[no-any-return]


def machines() -> int:
    """Return the number of machines of the run. Every process must call it."""
    from accelerate import PartialState

    return sum(in_every_process(lambda: PartialState().is_local_main_process))


def share_a_disk(folder: Path) -> bool:
    """Return whether all processes find the same files in a folder, which need not exist yet. Every one must call it.

    The first process writes a file with a random name into the folder, or into the nearest folder above it that exists,
    and removes it again.

    Raises:
        UserError: As :func:`in_every_process`.
    """
    from accelerate import PartialState

    first = PartialState().is_main_process
    name = in_every_process(lambda: f".selfaug-{secrets.token_hex(8)}")[0]
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    try:
        in_every_process(lambda: _touch(there / name) if first else None)
        return all(in_every_process(lambda: first or _appears(there, name)))
    finally:
        if first:
            (there / name).unlink(missing_ok=True)


def _touch(file: Path) -> None:
    try:
        file.touch()
    except OSError as error:
        raise ConfigError(
            f"{str(file.parent)!r} cannot be written: {error.strerror or error}",
            "name a folder that you may write, on a disk with space.",
        ) from error


def _appears(folder: Path, name: str) -> bool:
    for _ in range(_TRIES):
        # Listing a folder makes a network disk look again; asking for one file may answer from a cache.
        if any(entry.name == name for entry in folder.iterdir()):
            return True
        time.sleep(_DELAY)
    return False


_hosts: tuple[Any, Any] | None = None  # the default group, and one of the same processes that needs no device


def begin_reduce(values: Tensor, operation: str = "sum") -> Callable[[], Tensor]:
    """Begin to reduce a CPU tensor over all processes, and return the function that waits for the result.

    The numbers go from processor to processor, so that no process waits for its device, nor a device for another.

    Args:
        values: Tensor on the CPU, of the same shape in all processes; changed in place.
        operation: ``sum`` or ``max``.
    """
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return lambda: values
    operations = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}
    work = dist.all_reduce(values, op=operations[operation], group=_host_group(), async_op=True)

    def wait() -> Tensor:
        work.wait()
        return values

    return wait


def _host_group() -> Any:
    """Return a group of all processes that works on CPU tensors; all of them call this for the first time together."""
    import torch.distributed as dist

    global _hosts
    if _hosts is None or _hosts[0] is not dist.group.WORLD:
        _hosts = dist.group.WORLD, dist.new_group(backend="gloo")
    return _hosts[1]
