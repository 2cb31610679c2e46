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
from pathlib import Path
from typing import Any

import pytest

from selfaug.run.checkpoint import SEAL, last_whole, numbered, step_of, torn_because
from tests.distributed.cells import Cell
from tests.distributed.launching import environment, largest_difference, launcher
from tests.distributed.test_sharding import STORIES, missing

pytestmark = [pytest.mark.distributed, pytest.mark.nightly, pytest.mark.shared, pytest.mark.timeout(3600)]

SCRIPT = Path(__file__).with_name("resumed.py")
MOMENTS = 10
STEPS = 40
# torchrun ends the other ranks when one is gone: SIGTERM at once, SIGKILL after 30 seconds.
LONGEST = 60.0


def start(kind: str, folder: Path, cell: Cell, steps: int = STEPS, **changes: Any) -> subprocess.Popen[str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cell.json").write_text(json.dumps(vars(cell)))
    words = [*launcher(kind, folder, **changes), str(SCRIPT), kind, str(folder / "cell.json"), str(STORIES)]
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen([*words, str(folder), str(steps)], env=environment(), stdout=log, stderr=log, text=True)


def finish(kind: str, folder: Path, cell: Cell, steps: int = STEPS, **changes: Any) -> None:
    code = start(kind, folder, cell, steps, **changes).wait(timeout=400)
    assert code == 0, (folder / "log.txt").read_text()[-3000:]


def saving(run: Path, since: float) -> bool:
    """Whether a checkpoint has files of this launch and no seal yet."""
    unsealed = [path for path in numbered(run) if not (path / SEAL).is_file()]
    try:
        return any(file.stat().st_mtime > since for path in unsealed for file in path.rglob("*"))
    except FileNotFoundError:  # a temporary file of the save
        return True


def kill_one(kind: str, folder: Path, cell: Cell, step: int, delay: float, rank: int, *, in_save: bool) -> float:
    """Kill a rank ``delay`` seconds after a step, or after a save has begun; the seconds until the launch has ended."""
    shutil.rmtree(folder / "export", ignore_errors=True)
    (folder / "step").unlink(missing_ok=True)
    launched = time.time()
    process = start(kind, folder, cell)
    try:
        until = time.monotonic() + 300
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


@pytest.mark.parametrize("cell", [Cell("lora", "initial"), Cell("full", "path")], ids=lambda cell: cell.name)
@pytest.mark.parametrize(
    ("kind", "changes"),
    [("fsdp2", {}), ("fsdp2", {"fsdp_state_dict_type": "SHARDED_STATE_DICT"}), ("zero2", {}), ("zero3", {})],
    ids=["fsdp2", "fsdp2-sharded-checkpoints", "zero2", "zero3"],
)
def test_a_resumed_run_is_the_uninterrupted_one(kind: str, changes: dict[str, Any], cell: Cell, tmp_path: Path) -> None:
    if (reason := missing(kind, cell)) is not None:
        pytest.skip(reason)
    finish(kind, tmp_path / "whole", cell, 6, **changes)
    finish(kind, tmp_path / "halves", cell, 2, **changes)
    assert largest_difference(tmp_path / "halves", tmp_path / "whole") > 1e-4, "the last steps change nothing"
    finish(kind, tmp_path / "halves", cell, 6, **changes)
    assert "going on from step 2" in (tmp_path / "halves" / "log.txt").read_text()
    assert largest_difference(tmp_path / "halves", tmp_path / "whole") == 0.0


@pytest.mark.parametrize("kind", ["fsdp2", "zero3"])
def test_a_killed_rank_neither_hangs_nor_tears(kind: str, tmp_path: Path) -> None:
    cell = Cell("lora", "initial")
    if (reason := missing(kind, cell)) is not None:
        pytest.skip(reason)
    finish(kind, tmp_path / "whole", cell)
    folder, draw = tmp_path / "killed", random.Random(22)
    reached, torn_seen = 0, 0
    for moment in range(MOMENTS):
        # A checkpoint is saved after each second step.
        in_save = moment % 2 == 1
        step, delay = reached + draw.randrange(1, 4), draw.uniform(0, 0.02 if in_save else 0.3)
        rank = draw.randrange(2)
        seconds = kill_one(kind, folder, cell, step, delay, rank, in_save=in_save)
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
    finish(kind, folder, cell)
    difference = largest_difference(folder, tmp_path / "whole")
    print(f"{kind}: {torn_seen} of {MOMENTS} kills tore a checkpoint; largest difference {difference}", flush=True)
    assert difference == 0.0


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-s", "-q", "-m", "nightly"]))
