"""TRL's trainer and ours on the same rows, each with what it saw and did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback
from trl import SFTConfig, SFTTrainer

from selfaug.training.config import SelfAugConfig
from selfaug.training.trainer import SelfAugTrainer
from tests.integration import small

STEPS = 20


class _FirstGradient(TrainerCallback):  # type: ignore[misc]
    def __init__(self) -> None:
        self.gradient: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 0:
            named = model.named_parameters()
            self.gradient = {name: p.grad.clone() for name, p in named if p.requires_grad and p.grad is not None}


def recorded(kind: type[SFTTrainer]) -> type[SFTTrainer]:
    """The trainer's class with a list of the micro-batches that it trained on."""

    class Recorded(kind):  # type: ignore[misc, valid-type]
        def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            names = ("input_ids", "labels", "attention_mask", "position_ids")
            batch = {n: inputs[n].clone() for n in names if n in inputs}
            self.seen = [*getattr(self, "seen", []), (self.state.global_step, batch)]
            return super().training_step(model, inputs, *args, **kwargs)

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            # TRL averages these over micro-batches; kept apart here, to be weighted by tokens.
            metrics = {name: values[-1] for name, values in self._metrics["train"].items() if values}
            self.by_batch = [*getattr(self, "by_batch", []), metrics]
            return loss

    return Recorded


def train(
    kind: type[SFTTrainer], model: PreTrainedModel, tokenizer: Any, rows: Dataset, folder: Path, **settings: Any
) -> tuple[Any, dict[str, Tensor]]:
    """A finished trainer and the first step's gradient."""
    common: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": STEPS, "learning_rate": 2e-5, "logging_steps": 1, "bf16": False,
        "use_cpu": True, "report_to": "none", "save_strategy": "no", "gradient_checkpointing": False,
        "per_device_train_batch_size": 2, "disable_tqdm": True, "max_grad_norm": 0.0, **settings,
    }  # fmt: skip
    ours = issubclass(kind, SelfAugTrainer)
    args = SelfAugConfig(alpha=0.0, **common) if ours else SFTConfig(**common)
    first = _FirstGradient()
    trainer = recorded(kind)(
        model, args, train_dataset=rows, processing_class=tokenizer, peft_config=small.lora(r=8), callbacks=[first]
    )
    trainer.train()
    return trainer, first.gradient
