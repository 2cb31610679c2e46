"""How do the benchmarks time, weigh and report? Interleaved repeats, medians of ratios, the system's peak memory."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "CLOCKS",
    "Demand",
    "add_common_options",
    "environment",
    "interleaved",
    "median_ratio",
    "peak_bytes",
    "quiet",
    "report",
    "table",
]


# Of the wall; or of this process's own work, all threads together, which does not count waiting for a busy processor.
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def interleaved(
    runs: Mapping[str, Callable[[], object]], repeats: int, *, warm_up: int = 1, clock: str = "wall"
) -> dict[str, list[float]]:
    """Seconds of each run, ``repeats`` times, taking turns in one process.

    Runs that take turns meet the same neighbours on a shared machine, so their ratios hold where seconds do not. The
    order is reversed every other round: whatever a run leaves behind in the caches is not always the same run's gain.

    Args:
        runs: By name.
        repeats: Rounds that count.
        warm_up: Rounds before them.
        clock: ``wall``, or ``cpu`` for a machine that others use too (meaningful with one thread: several that wait
            for each other spend processor time on it).
    """
    now = CLOCKS[clock]
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warm_up + repeats):
        for name in list(runs) if turn % 2 == 0 else reversed(list(runs)):
            start = now()
            runs[name]()
            taken = now() - start
            if turn >= warm_up:
                seconds[name].append(taken)
    return seconds


def median_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median of the ratios within each round."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def peak_bytes() -> int:
    """The largest resident memory that this process ever had, in bytes, as the operating system counts it."""
    status = Path("/proc/self/status")
    if status.exists():
        # Of this program alone; getrusage() also counts what the parent held when it forked.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def environment() -> dict[str, Any]:
    """What the figures depend on: versions, processor features, threads, and the load at this moment."""
    import peft
    import torch
    import transformers
    import trl

    features = [name for name, present in torch.cpu.get_capabilities().items() if present is True]
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
        "peft": peft.__version__,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": [f for f in features if f.startswith(("avx512", "amx", "sve", "neon"))],
        "load_average": [round(x, 2) for x in os.getloadavg()],
    }


def add_common_options(parser: argparse.ArgumentParser, *, repeats: int | None = None) -> None:
    """The flags that every benchmark has; those of timing where ``repeats``, their default number, is given."""
    parser.add_argument("--json", type=Path, help="Write every figure here.")
    if repeats is not None:
        parser.add_argument("--repeats", type=int, default=repeats, help="Interleaved rounds.")
        parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: with OMP_NUM_THREADS=1.")


def quiet() -> None:
    """No bars and notes of the libraries between the figures."""
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' own names, deprecated for version 6
    logging.getLogger("selfaug").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Demand:
    """A figure and what it must be: at least, or at most, a bound."""

    name: str
    value: float
    bound: float
    at_least: bool

    @property
    def met(self) -> bool:
        """Whether the figure keeps to the bound; not where it is NaN."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def line(self) -> str:
        """The figure, the bound, and whether it is met."""
        sign = "≥" if self.at_least else "≤"
        return f"{'met   ' if self.met else 'MISSED'}  {self.name}: {self.value:.3g} (demanded {sign} {self.bound:g})"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns aligned with spaces: the first to the left, the others to the right."""
    cells = [[str(c) for c in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def report(text: Sequence[str], demands: Sequence[Demand], figures: Mapping[str, Any], file: Path | None) -> int:
    """Print the tables and the demands, write the figures as JSON; the exit status is 1 where a demand is missed."""
    print("\n".join([*text, "", *(d.line() for d in demands)]), flush=True)
    if file is not None:
        whole = {
            "command": " ".join(["python", *sys.argv]),
            "environment": environment(),
            "demands": [{**asdict(d), "met": d.met} for d in demands],
            **figures,
        }
        file.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    return int(not all(d.met for d in demands))
