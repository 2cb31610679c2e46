"""Work that the first process of each machine does for all of a distributed run."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from selfaug.common.errors import UserError

__all__ = ["once_per_machine"]

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
