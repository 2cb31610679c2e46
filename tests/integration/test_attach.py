"""Tests of `selfaug.attach`: the step of a stock trainer equals the oracle's, as that of our own trainer does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

import selfaug
from selfaug.common.errors import ConfigError
from tests.integration.steps import SEQUENCES, TOLERANCE, Ran, _record_batches, _Recorder, oracle_step
from tests.models import lora_config, perturb_adapter, tiny, tiny_tokenizer
from tests.oracles.step import relative_distance

COMMON: dict[str, Any] = {
    "max_steps": 1, "learning_rate": 0.0, "weight_decay": 0.0, "max_grad_norm": 0.0, "lr_scheduler_type": "constant",
    "bf16": False, "save_strategy": "no", "logging_steps": 1, "report_to": [], "disable_tqdm": True, "use_cpu": True,
}  # fmt: skip


def make(kind: str, folder: Path, *, adapted: bool = True, **settings: Any) -> Any:
    chosen = SEQUENCES["single-turn"]
    rows = Dataset.from_list([{"input_ids": list(ids), "labels": list(labels)} for ids, labels in chosen])
    model = tiny("llama", dtype=torch.float64)
    if kind == "stock":
        return Trainer(
            get_peft_model(model, lora_config("llama")) if adapted else model,
            TrainingArguments(str(folder), **COMMON, **settings),
            train_dataset=rows,
            data_collator=DataCollatorForSeq2Seq(tiny_tokenizer(), pad_to_multiple_of=8),
        )
    args = SFTConfig(str(folder), max_length=256, gradient_checkpointing=False, **COMMON, **settings)
    return SFTTrainer(
        model, args, train_dataset=rows, processing_class=tiny_tokenizer(), peft_config=lora_config("llama")
    )


def step(kind: str, folder: Path, *, size: int, accumulated: int, **alignment: Any) -> Ran:
    trainer = make(kind, folder, per_device_train_batch_size=size, gradient_accumulation_steps=accumulated)
    assert selfaug.attach(trainer, **alignment) is trainer
    ran = Ran([], [])
    trainer.add_callback(_Recorder(ran, perturb_adapter))
    _record_batches(trainer, ran)
    trainer.train()
    ran.losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    ran.trainer = trainer
    return ran


@pytest.mark.parametrize(("size", "accumulated"), [(6, 1), (2, 3)])
@pytest.mark.parametrize("kind", ["stock", "sft"])
def test_a_step_of_another_trainer_equals_the_oracle(kind: str, size: int, accumulated: int, tmp_path: Path) -> None:
    chosen = SEQUENCES["single-turn"]
    assert len(chosen) == size * accumulated, "one step over all sequences"
    ran = step(kind, tmp_path, size=size, accumulated=accumulated)
    assert len(ran.batches[0]) == accumulated
    assert size == 1 or any(not batch["attention_mask"].all() for batch in ran.batches[0]), "something is padded"
    loss, gradient = oracle_step(chosen, alpha=2.0).gradient()
    assert relative_distance(ran.gradient, gradient) < TOLERANCE[torch.float64]
    assert ran.losses[0] == pytest.approx(float(loss), rel=1e-5)
    logged = ran.trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(logged["nll"] + 2.0 * logged["alignment"], rel=1e-5)
    assert logged["alignment"] > 0


def test_alpha_0_trains_as_the_trainer_alone(tmp_path: Path) -> None:
    ran = step("stock", tmp_path / "attached", size=6, accumulated=1, alpha=0.0)
    alone = Ran([], [])
    trainer = make("stock", tmp_path / "alone", per_device_train_batch_size=6)
    trainer.add_callback(_Recorder(alone, perturb_adapter))
    trainer.train()
    assert relative_distance(ran.gradient, alone.gradient) < TOLERANCE[torch.float64]


def test_a_resumed_run_is_held_to_where_the_first_one_began(tmp_path: Path) -> None:
    settings = {**COMMON, "learning_rate": 0.05, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}

    def trained(folder: Path, until: int, *, resume: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0 if not resume else 123)  # a fresh adapter of the resumed process is another one
        rows = Dataset.from_list(
            [{"input_ids": list(ids), "labels": list(labels)} for ids, labels in SEQUENCES["single-turn"]]
        )
        trainer = Trainer(
            get_peft_model(tiny("llama", dtype=torch.float64), lora_config("llama")),
            TrainingArguments(str(folder), **{**settings, "per_device_train_batch_size": 2}),
            train_dataset=rows,
            data_collator=DataCollatorForSeq2Seq(tiny_tokenizer()),
        )
        if not resume:
            perturb_adapter(trainer.model)
        selfaug.attach(trainer, reference="initial")
        if until < 4:
            trainer.add_callback(_StopAfter(until))
        trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{2}") if resume else None)
        return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}

    whole = trained(tmp_path / "whole", 4, resume=False)
    trained(tmp_path / "cut", 2, resume=False)
    assert (tmp_path / "cut" / "checkpoint-2" / "selfaug_reference.safetensors").is_file()
    resumed = trained(tmp_path / "cut", 4, resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def _stop_after() -> Any:
    from transformers import TrainerCallback

    class StopAfter(TrainerCallback):  # type: ignore[misc]
        def __init__(self, step: int) -> None:
            self.step = step

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step >= self.step

    return StopAfter


_StopAfter = _stop_after()


@pytest.mark.parametrize(
    ("alignment", "said"),
    [
        ({"alpha": -1.0}, "is not a weight"),
        ({"alpha": float("nan")}, "is not a weight"),
        ({"align_fraction": 0.0}, "is not a share"),
        ({"align_direction": "base"}, "is not known"),
    ],
)
def test_settings_out_of_range_are_refused(alignment: dict[str, Any], said: str, tmp_path: Path) -> None:
    trainer = make("stock", tmp_path)
    with pytest.raises(ConfigError, match=said):
        selfaug.attach(trainer, **alignment)


def test_full_fine_tuning_without_another_reference_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="full fine-tuning has none"):
        selfaug.attach(make("stock", tmp_path, adapted=False))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda batch: {k: v for k, v in batch.items() if k != "labels"}, "has no labels"),
        (lambda batch: {k: v for k, v in batch.items() if k != "attention_mask"}, "neither attention_mask"),
        (lambda batch: {**batch, "attention_mask": batch["attention_mask"][:, None, None]}, "4 dimensions"),
    ],
)
def test_a_batch_from_which_the_prompt_cannot_be_told_is_refused(change: Any, said: str, tmp_path: Path) -> None:
    trainer = make("stock", tmp_path)
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: change(dict(collate(rows)))
    selfaug.attach(trainer)
    with pytest.raises(ConfigError, match=said):
        trainer.train()
