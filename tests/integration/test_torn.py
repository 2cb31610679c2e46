"""Which checkpoints does a training refuse or pass over, and does it go on from the others to the same adapter?"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from selfaug.common.errors import ConfigError
from selfaug.run.checkpoint import SEAL, last_whole, torn_because
from tests.integration import small
from tests.integration.killed_run import make_trainer

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
    for tensor in again.reference.tensors(again.base_model).values():
        tensor.add_(1.0)
    again.train(resume_from_checkpoint=True)
    assert equal(trained(again), expected)


def test_an_adapter_of_another_shape_is_refused(run: tuple[Path, dict[str, torch.Tensor]]) -> None:
    from datasets import Dataset

    from selfaug.training.trainer import SelfAugTrainer
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


def test_a_checkpoint_that_is_written_anew_is_unsealed_first(
    run: tuple[Path, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Large files are known by their size alone: half old and half new, they would pass under the old seal.
    output_dir, _ = run
    trainer = make_trainer(output_dir, **SHORT)
    trainer.state.global_step = 4
    assert torn_because(output_dir / "checkpoint-4") is None
    during: list[str | None] = []
    monkeypatch.setattr(
        Trainer, "_save_checkpoint", lambda *_: during.append(torn_because(output_dir / "checkpoint-4"))
    )
    trainer._save_checkpoint(trainer.model, trial=None)
    assert len(during) == 1
    assert SEAL in str(during[0])
    assert torn_because(output_dir / "checkpoint-4") is None
