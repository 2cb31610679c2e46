"""What does a run leave behind when one of its ranks is killed, at any moment, saving included?

FSDP2 and ZeRO-3: one run is killed at ten random moments, half of them within the saving of a checkpoint, and goes on
from its last whole checkpoint each time. Every launch ends within a stated time, and the finished run has the weights
of one that nobody killed, bit for bit.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from selfaug.run.checkpoint import SEAL, last_whole, numbered, step_of, torn_because
from tests.distributed.cells import Cell
from tests.distributed.launching import environment, largest_difference, launcher
from tests.distributed.test_sharding import STORIES, missing

pytestmark = [pytest.mark.distributed, pytest.mark.nightly, pytest.mark.shared, pytest.mark.timeout(7200)]

SCRIPT = Path(__file__).with_name("resumed.py")
MOMENTS = 10
STEPS = 24
# torchrun ends the other ranks when one is gone: SIGTERM at once, SIGKILL after 30 seconds.
LONGEST = 60.0


Run = tuple[Cell, Path, int]
"""What is trained, in which folder, for how many steps."""


def start(kind: str, runs: Sequence[Run], **changes: Any) -> subprocess.Popen[str]:
    """Launch two ranks that make the runs one after the other; the log and the list are in the first run's folder."""
    own = runs[0][1]
    for _, folder, _ in runs:
        folder.mkdir(parents=True, exist_ok=True)
    (own / "runs.json").write_text(json.dumps([[vars(cell), str(folder), steps] for cell, folder, steps in runs]))
    words = [*launcher(kind, own, **changes), str(SCRIPT), kind, str(own / "runs.json"), str(STORIES)]
    with (own / "log.txt").open("a") as log:
        return subprocess.Popen(words, env=environment(), stdout=log, stderr=log, text=True)


def finish(kind: str, *runs: Run, **changes: Any) -> str:
    """Wait for a launch of runs, and return what all launches in the first run's folder said."""
    code = start(kind, runs, **changes).wait(timeout=1200 * len(runs))
    said = (runs[0][1] / "log.txt").read_text()
    assert code == 0, said[-3000:]
    return said


def saving(run: Path, since: float) -> bool:
    """Whether a checkpoint has files of this launch and no seal yet."""
    unsealed = [path for path in numbered(run) if not (path / SEAL).is_file()]
    try:
        return any(file.stat().st_mtime > since for path in unsealed for file in path.rglob("*"))
    except FileNotFoundError:  # a temporary file of the save
        return True


def kill_one(kind: str, run: Run, step: int, delay: float, rank: int, *, in_save: bool) -> float:
    """Kill a rank ``delay`` seconds after a step, or after a save has begun; the seconds until the launch has ended."""
    folder, launched = run[1], time.time()
    shutil.rmtree(folder / "export", ignore_errors=True)
    (folder / "step").unlink(missing_ok=True)
    process = start(kind, [run])
    try:
        until = time.monotonic() + 900
        while (
            not (folder / "step").is_file()
            or int((folder / "step").read_text() or 0) < step
            or (in_save and not saving(folder / "run", launched))
        ):
            assert process.poll() is None, "it ended before it was killed: " + (folder / "log.txt").read_text()[-3000:]
            assert time.monotonic() < until
            time.sleep(0.001)
        time.sleep(delay)
        os.kill(int((folder / f"pid{rank}").read_text()), signal.SIGKILL)
        since = time.monotonic()
        assert process.wait(timeout=LONGEST) != 0
        return time.monotonic() - since
    finally:
        if process.poll() is None:
            process.kill()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("fsdp2", {}), ("fsdp2", {"fsdp_state_dict_type": "SHARDED_STATE_DICT"}), ("zero2", {}), ("zero3", {})],
    ids=["fsdp2", "fsdp2-sharded-checkpoints", "zero2", "zero3"],
)
def test_a_resumed_run_is_the_uninterrupted_one(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    cells = [Cell("lora", "initial"), Cell("full", "path")]
    if (reason := missing(kind, cells[0])) is not None:
        pytest.skip(reason)
    whole, halves = ([(cell, tmp_path / name / cell.name) for cell in cells] for name in ("whole", "halves"))
    finish(kind, *((*run, 6) for run in whole), *((*run, 2) for run in halves), **changes)
    for (_, folder), (_, half) in zip(whole, halves, strict=True):
        assert largest_difference(half, folder) > 1e-4, "the last steps change nothing"
    said = finish(kind, *((*run, 6) for run in halves), **changes)
    for (cell, folder), (_, half) in zip(whole, halves, strict=True):
        assert f"{half} goes on from step 2" in said
        difference = largest_difference(half, folder)
        print(f"{kind} {changes} {cell.name}: {difference}")
        assert difference == 0.0


@pytest.mark.parametrize("kind", ["fsdp2", "zero3"])
def test_a_killed_rank_neither_hangs_nor_tears(kind: str, tmp_path: Path) -> None:
    cell = Cell("lora", "initial")
    if (reason := missing(kind, cell)) is not None:
        pytest.skip(reason)
    finish(kind, (cell, tmp_path / "whole", STEPS))
    folder, draw = tmp_path / "killed", random.Random(22)
    run = cell, folder, STEPS
    reached, torn_seen = 0, 0
    for moment in range(MOMENTS):
        # A checkpoint is saved after each second step.
        in_save = moment % 2 == 1
        step, delay = reached + draw.randrange(1, 4), draw.uniform(0, 0.02 if in_save else 0.3)
        rank = draw.randrange(2)
        seconds = kill_one(kind, run, step, delay, rank, in_save=in_save)
        assert not (folder / "export").exists()
        torn = [path.name for path in numbered(folder / "run") if torn_because(path) is not None]
        torn_seen += bool(torn)
        last = last_whole(folder / "run")
        reached = 0 if last is None else step_of(last)
        print(
            f"{kind} {moment}: rank {rank} killed {delay:.3f} s after {'a save following ' * in_save}step {step}; "
            f"ended in {seconds:.1f} s; "
            f"torn: {torn}; goes on from step {reached}",
            flush=True,
        )
        assert reached >= step - 3, "more than the steps since the last checkpoint are lost"
    assert torn_seen, "no kill fell into a save"
    finish(kind, run)
    difference = largest_difference(folder, tmp_path / "whole")
    print(f"{kind}: {torn_seen} of {MOMENTS} kills tore a checkpoint; largest difference {difference}", flush=True)
    assert difference == 0.0


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-s", "-q", "-m", "nightly"]))
