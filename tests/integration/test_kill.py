"""Does a run that was killed, at any moment, end with the adapter that it would have had?"""

from __future__ import annotations

import logging
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from selfaug.checkpoint import SEAL, last_whole, torn_because
from selfaug.errors import ConfigError
from tests.integration import small
from tests.integration.killed_run import make_trainer, start

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


@pytest.mark.slow
def test_two_uninterrupted_runs_agree_and_another_seed_differs(
    uninterrupted: tuple[bytes, float], tmp_path: Path
) -> None:
    # What makes bit equality after a kill mean something.
    assert finish(tmp_path / "again") == uninterrupted[0]
    assert finish(tmp_path / "other", seed=43) != uninterrupted[0]


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


# ---- what is refused, and what is passed over; in this process ------------------------------------------------------

SHORT: dict[str, Any] = {"max_steps": 4, "save_steps": 2, "save_total_limit": None}


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """The folder of a finished short run with checkpoints 2 and 4, and its adapter."""
    trainer = make_trainer(tmp_path / "run", **SHORT)
    trainer.train()
    assert last_whole(tmp_path / "run") == tmp_path / "run" / "checkpoint-4"
    return tmp_path / "run", trained(trainer)


def trained(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES = {
    "adapter truncated": ("adapter_model.safetensors", truncate),
    "optimizer missing": ("optimizer.pt", Path.unlink),
    "scheduler missing": ("scheduler.pt", Path.unlink),
    "random state missing": ("rng_state.pth", Path.unlink),
    "reference truncated": ("selfaug_reference.safetensors", truncate),
    "seal missing": (SEAL, Path.unlink),
    "seal of garbage": (SEAL, lambda path: path.write_text("{ not json")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_torn_checkpoint_is_passed_over_by_true_and_refused_by_name(
    run: tuple[Path, dict[str, torch.Tensor]], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    output_dir, expected = run
    torn = output_dir / "checkpoint-4"
    name, act = DAMAGES[damage]
    act(torn / name)  # type: ignore[operator]
    with pytest.raises(ConfigError, match="checkpoint-4 is not a whole checkpoint") as refused:
        make_trainer(output_dir, **SHORT).train(resume_from_checkpoint=str(torn))
    assert name in refused.value.message
    again = make_trainer(output_dir, **SHORT)
    with caplog.at_level(logging.WARNING):
        again.train(resume_from_checkpoint=True)
    assert "checkpoint-4 is not a whole checkpoint" in caplog.text
    assert name in caplog.text
    assert equal(trained(again), expected)
    assert torn_because(torn) is None, "the step was saved anew"


def test_without_any_whole_checkpoint_true_is_an_error(run: tuple[Path, dict[str, torch.Tensor]]) -> None:
    for folder in run[0].glob("checkpoint-*"):
        (folder / SEAL).unlink()
    with pytest.raises(ConfigError, match="holds no whole one"):
        make_trainer(run[0], **SHORT).train(resume_from_checkpoint="true")


def test_another_reference_is_refused(run: tuple[Path, dict[str, torch.Tensor]]) -> None:
    with pytest.raises(ConfigError, match="another reference"):
        make_trainer(run[0], **SHORT, reference="base").train(resume_from_checkpoint=True)
    with pytest.raises(ConfigError, match="another reference"):
        make_trainer(run[0], **SHORT, model=small.tiny("llama", seed=5, dtype=torch.float32)).train(
            resume_from_checkpoint=True
        )


def test_the_initial_adapter_is_that_of_the_checkpoint(run: tuple[Path, dict[str, torch.Tensor]]) -> None:
    # The trainer of a resumed run starts from other random weights; the reference must not.
    output_dir, expected = run
    (output_dir / "checkpoint-4" / SEAL).unlink()
    again = make_trainer(output_dir, **SHORT)
    assert again.reference is not None
    for tensor in again.reference.tensors().values():
        tensor.add_(1.0)
    again.train(resume_from_checkpoint=True)
    assert equal(trained(again), expected)


def test_an_adapter_of_another_shape_is_refused(run: tuple[Path, dict[str, torch.Tensor]]) -> None:
    from datasets import Dataset

    from selfaug.trainer import SelfAugTrainer
    from tests.integration.killed_run import config

    wider = SelfAugTrainer(
        small.model(),
        config(run[0], **SHORT),
        train_dataset=Dataset.from_list(small.rows(60)),
        processing_class=small.tokenizer(),
        peft_config=small.lora(r=6),
    )
    with pytest.raises(ConfigError, match="adapter"):
        wider.train(resume_from_checkpoint=True)


def test_a_run_shorter_than_save_steps_saves_at_its_end(tmp_path: Path) -> None:
    make_trainer(tmp_path, max_steps=3, save_steps=500).train()
    assert last_whole(tmp_path) == tmp_path / "checkpoint-3"


def test_a_finished_run_resumes_to_the_same_adapter(run: tuple[Path, dict[str, torch.Tensor]]) -> None:
    output_dir, expected = run
    again = make_trainer(output_dir, **SHORT)
    again.train(resume_from_checkpoint=True)
    assert equal(trained(again), expected)
    assert last_whole(output_dir) == output_dir / "checkpoint-4"


def test_num_tokens_goes_on_where_the_checkpoint_was(run: tuple[Path, dict[str, torch.Tensor]]) -> None:
    output_dir, _ = run
    whole = make_trainer(output_dir.with_name("other"), **SHORT)
    whole.train()
    (output_dir / "checkpoint-4" / SEAL).unlink()
    again = make_trainer(output_dir, **SHORT)
    again.train(resume_from_checkpoint=True)

    def logged(trainer: Any) -> dict[int, int]:
        return {e["step"]: e["num_tokens"] for e in trainer.state.log_history if "num_tokens" in e}

    assert logged(again) == logged(whole)
    assert len(logged(whole)) == 4
    assert sorted(logged(whole).values()) == list(logged(whole).values())
