"""Work on chunks in several processes, with the results in the order of the chunks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from selfaug.common.errors import UserError

__all__ = ["chunked", "in_order"]

S = TypeVar("S")
C = TypeVar("C")
T = TypeVar("T")


def chunked(items: Iterable[C], size: int) -> Iterator[list[C]]:
    """Yield the items in lists of ``size``, the last one perhaps shorter."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


def in_order(
    work: Callable[[S, C], T], state: S, chunks: Iterable[C], processes: int, killed: UserError
) -> Iterator[T]:
    """Yield ``work(state, chunk)`` for each chunk, in their order.

    Args:
        work: Function of a module, which the processes import.
        state: What every call needs; it goes to each process once.
        chunks: Chunks, which are read as they are needed, so few are in memory at a time.
        processes: Number of processes; with 1 this process does the work.
        killed: Error to raise if one of the processes was killed.
    """
    if processes == 1:
        for chunk in chunks:
            yield work(state, chunk)
        return
    try:
        with ProcessPoolExecutor(processes, initializer=_begin, initargs=(state,)) as pool:
            waiting: deque[Future[T]] = deque()
            try:
                for chunk in chunks:
                    waiting.append(pool.submit(_work, work, chunk))
                    if len(waiting) > 2 * processes:  # bounds the number of chunks in memory
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
    except BrokenProcessPool as error:
        raise killed from error


# ---- in a process of the pool ----------------------------------------------------------------------------------------

_state: Any


def _begin(state: Any) -> None:
    global _state
    _state = state
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets the signal too, and ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    # A parent that was killed cannot end this process.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(work: Callable[[Any, C], T], chunk: C) -> T:
    return work(_state, chunk)
