"""How does a test get the adapter gradients of optimiser steps out of the real trainer?

`run` trains through `SelfAugTrainer.train`: its own data path, collator, `get_batch_samples`, `compute_loss` and
backward pass. Just before the optimiser would move, the gradients are copied; the learning rate is 0, so every step
starts from the same perturbed adapter, and clipping is off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback

from selfaug.training.config import SelfAugConfig
from selfaug.training.trainer import SelfAugTrainer
from tests.models import adapter_name, lora_config, perturb_adapter, tiny, tiny_tokenizer, with_lora
from tests.oracles.planted import Step
from tests.oracles.sequences import MULTI_TURN, ODD_SHAPES, SINGLE_TURN, sequences
from tests.oracles.step import Gradients, Sequence_

# float64: the two sides sum in different orders; norms and rotary tables of transformers are float32 on both sides, so
# what is left are single flips of a float32 rounding. float32: 6e-8 a rounding, over a few thousand of them.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}

SEQUENCES: dict[str, tuple[Sequence_, ...]] = {
    "single-turn": sequences(SINGLE_TURN),
    "multi-turn": sequences(MULTI_TURN),
    "odd shapes": sequences(ODD_SHAPES),
}


@dataclass
class Ran:
    """What a run left behind: a gradient for each optimiser step, and the micro-batches of each."""

    gradients: list[Gradients]
    batches: list[list[dict[str, Any]]]
    losses: list[float] = field(default_factory=list)
    trainer: SelfAugTrainer | None = None

    @property
    def gradient(self) -> Gradients:
        """The gradient of the only step."""
        assert len(self.gradients) == 1, "the run was to be one optimiser step"
        return self.gradients[0]


def run(
    chosen: Sequence[Sequence_],
    folder: Path,
    *,
    arch: str = "llama",
    dtype: torch.dtype = torch.float64,
    change: Callable[[SelfAugTrainer], None] | None = None,
    model: torch.nn.Module | None = None,
    peft_config: LoraConfig | None = None,
    perturb: Callable[[torch.nn.Module], None] = perturb_adapter,
    **settings: Any,
) -> Ran:
    """Train steps on ``chosen``; by default one step over all of them in micro-batches of two.

    Args:
        chosen: The data set.
        folder: Output folder of the run.
        arch: Of `tests/models.py`.
        dtype: Of the weights.
        change: Called with the trainer before it trains.
        model: In place of the tiny one under a LoRA on all linear layers; trained as it is.
        peft_config: In place of LoRA on all linear layers.
        perturb: Called with the model as training begins, after the trainer's own checks: a fresh adapter is the base,
            and every comparison would be trivial.
        settings: Of `SelfAugConfig`.
    """
    size = settings.setdefault("per_device_train_batch_size", 2)
    settings.setdefault("gradient_accumulation_steps", -(-len(chosen) // size))
    settings.setdefault("max_length", None if settings.get("padding_free") else 256)
    args = SelfAugConfig(
        **{
            "output_dir": str(folder),
            "max_steps": 1,
            "learning_rate": 0.0,
            "weight_decay": 0.0,
            "max_grad_norm": 0.0,
            "lr_scheduler_type": "constant",
            "bf16": False,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "logging_steps": 1,
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            **settings,
        }
    )
    rows = [{"input_ids": list(ids), "labels": list(labels)} for ids, labels in chosen]
    ran = Ran([], [])
    trainer = SelfAugTrainer(
        model or tiny(arch, dtype=dtype),
        args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
        peft_config=peft_config or (lora_config(arch) if model is None else None),
    )
    for parameter in trainer.model.parameters():
        assert parameter.dtype == dtype
    trainer.add_callback(_Recorder(ran, perturb))
    _record_batches(trainer, ran)
    if change is not None:
        change(trainer)
    trainer.train()
    ran.trainer = trainer
    ran.losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return ran


def oracle_step(
    chosen: Sequence[Sequence_], *, arch: str = "llama", dtype: torch.dtype = torch.float64, **settings: Any
) -> Step:
    """The same step for the oracle: base and tuned loaded apart."""
    return Step(lambda: tiny(arch, dtype=dtype), with_lora(tiny(arch, dtype=dtype)), tuple(chosen), **settings)


def _record_batches(trainer: Any, ran: Ran) -> None:
    planned = trainer.get_batch_samples

    def get_batch_samples(*given: Any, **named: Any) -> Any:
        batches, count = planned(*given, **named)
        ran.batches.append([dict(batch) for batch in batches])
        return batches, count

    trainer.get_batch_samples = get_batch_samples


class _Recorder(TrainerCallback):  # type: ignore[misc]
    def __init__(self, ran: Ran, perturb: Callable[[torch.nn.Module], None]) -> None:
        self._ran, self._perturb = ran, perturb

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._perturb(model)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._ran.gradients.append(
            {
                adapter_name(name): torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
                for name, p in model.named_parameters()
                if p.requires_grad
            }
        )
