"""What the processes of a distributed run do for one another: work of one for all, and sums over all of them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from selfaug.common.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["begin_reduce", "once_per_machine"]

T = TypeVar("T")
_PATIENCE = timedelta(days=30)
"""Longest wait of the other processes: the first one may be reading millions of rows."""


def once_per_machine(make: Callable[[], T]) -> T:
    """Return, in each process of this machine, what ``make`` returns in its first process.

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
        return make()
    group = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
    mine: tuple[Any, UserError | None] = None, None
    if state.is_local_main_process:
        try:
            mine = make(), None
        except UserError as error:
            mine = None, error
    found: list[tuple[Any, UserError | None]] = [mine] * state.num_processes
    torch.distributed.all_gather_object(found, mine, group=group)
    torch.distributed.destroy_process_group(group)
    for rank, (_, mistake) in enumerate(found):
        if mistake is not None:
            mistake.said_elsewhere = rank != state.process_index
            raise mistake
    result: T = found[state.process_index - state.local_process_index][0]
    return result


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
