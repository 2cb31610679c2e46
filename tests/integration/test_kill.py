"""Does a run that was killed, at any moment, end with the adapter that it would have had?"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from selfaug.run.checkpoint import SEAL, last_whole
from tests.integration.killed_run import start

# More than the default for a thorough run: SELFAUG_TEST_KILLS=20 pytest tests/integration/test_kill.py -s
KILLS = int(os.environ.get("SELFAUG_TEST_KILLS", "4"))
ADAPTER = "adapter_model.safetensors"


def finish(output_dir: Path, **changes: Any) -> bytes:
    """Train to the end in a child; the finished adapter's bytes."""
    process = start(output_dir, **changes)
    process.join()
    assert process.exitcode == 0, (output_dir / "talk.txt").read_text()[-3000:]
    return adapter(output_dir)


def adapter(output_dir: Path) -> bytes:
    return (output_dir / "adapter" / ADAPTER).read_bytes()


def unsealed(checkpoints: Path) -> list[str]:
    found = checkpoints.glob("checkpoint-*") if checkpoints.is_dir() else ()
    return sorted(folder.name for folder in found if not (folder / SEAL).is_file())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, float]:
    """The adapter of the run that nothing stops, and the seconds that it takes."""
    output_dir = tmp_path_factory.mktemp("uninterrupted")
    began = time.monotonic()
    result = finish(output_dir)
    seconds = time.monotonic() - began
    assert (output_dir / "steps").read_text() == "40"
    tensors = load_file(output_dir / "adapter" / ADAPTER)
    assert all(t.count_nonzero() for name, t in tensors.items() if "lora_B" in name), "nothing was learnt"
    return result, seconds


@pytest.mark.nightly
@pytest.mark.slow
def test_two_uninterrupted_runs_agree_and_another_seed_differs(
    uninterrupted: tuple[bytes, float], tmp_path: Path
) -> None:
    # What makes bit equality after a kill mean something.
    assert finish(tmp_path / "again") == uninterrupted[0]
    assert finish(tmp_path / "other", seed=43) != uninterrupted[0]


@pytest.mark.nightly
@pytest.mark.slow
def test_killed_at_random_moments_the_adapter_is_the_same_to_the_bit(
    uninterrupted: tuple[bytes, float], tmp_path: Path
) -> None:
    expected, seconds = uninterrupted
    pick = random.Random(20)
    killed = torn = resumed = runs = 0
    while killed < KILLS or not torn:
        assert killed < 4 * KILLS + 20, "no kill hit a checkpoint while it was written"
        runs += 1
        output_dir = tmp_path / f"run{runs}"
        while not (output_dir / "adapter" / ADAPTER).is_file():
            resumed += last_whole(output_dir / "checkpoints") is not None
            torn_before = set(unsealed(output_dir / "checkpoints"))
            process = start(output_dir)
            if killed < KILLS or not torn:
                # Every second one while a checkpoint is being written, the others at any moment.
                moment = pick.random()
                wait = (
                    wait_for_saving(process, output_dir / "checkpoints", 0.04 * moment)
                    if killed % 2
                    else process.join(0.1 + 0.5 * seconds * moment)
                )
                assert wait is None
                process.kill()
                process.join()
                if process.exitcode == -signal.SIGKILL:
                    killed += 1
                    torn += bool(set(unsealed(output_dir / "checkpoints")) - torn_before)
                    continue
            process.join()
            assert process.exitcode == 0, (output_dir / "talk.txt").read_text()[-3000:]
        assert adapter(output_dir) == expected, f"run {runs} differs after {killed} kills"
    print(
        f"\n{killed} kills over {runs} runs, {torn} while saving, {resumed} resumptions: every adapter equal to the bit"
    )
    assert resumed, "no run went on from a checkpoint"


def wait_for_saving(process: Any, checkpoints: Path, seconds: float) -> None:
    """Return ``seconds`` after a checkpoint folder without a seal has newly appeared, or when the process ends."""
    before = set(unsealed(checkpoints))
    while process.is_alive() and not set(unsealed(checkpoints)) - before:
        time.sleep(0.0005)
    process.join(seconds)


@pytest.mark.slow
def test_killed_at_any_file_operation_one_whole_checkpoint_is_left(tmp_path: Path) -> None:
    settings = {"max_steps": 6, "save_total_limit": 1}
    expected = finish(tmp_path / "whole", **settings)
    operations = int((tmp_path / "whole" / "operations").read_text())
    # Two saves after the first, each with its files, its seal, and the removal of the one before.
    assert operations > 20, "the files that a save writes were not seen"
    moments = list(range(1, operations + 1))
    if KILLS < 20:
        moments = random.Random(1).sample(moments, KILLS + 2)
    torn = 0
    for moment in moments:
        output_dir = tmp_path / f"at{moment}"
        process = start(output_dir, kill_at=moment, **settings)
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"operation {moment} never came"
        assert last_whole(output_dir / "checkpoints") is not None, (
            f"killed at operation {moment}: nothing whole is left"
        )
        torn += bool(unsealed(output_dir / "checkpoints"))
        assert finish(output_dir, **settings) == expected, f"killed at operation {moment}: another adapter"
        # Killed between the last seal and the removal of the one before, there is no later save to remove it.
        assert len(list((output_dir / "checkpoints").glob("checkpoint-*"))) <= 2
    assert torn, "no kill hit a checkpoint while it was written"
    print(f"\n{len(moments)} of {operations} file operations: a whole checkpoint is always left, {torn} kills tore one")
