"""Plugins of axolotl for its tests: one records the step, one lets documents of a row see each other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback

from tests.models import adapter_name, perturb_adapter


class Recorder(BasePlugin):
    """Moves the adapter as training begins, and saves the batches and the gradient of the step."""

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[TrainerCallback]:
        return [_Callback(trainer)]


class KeepMask(BasePlugin):
    """Keeps the attention mask of packed rows, as axolotl does for attention that it does not know."""

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        trainer.args.sample_packing_drop_attention_mask = False


class _Callback(TrainerCallback):
    def __init__(self, trainer: Any) -> None:
        self.trainer, self.batches = trainer, []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        perturb_adapter(self.trainer.model)
        taken = self.trainer.get_batch_samples

        def get_batch_samples(*given: Any, **named: Any) -> Any:
            batches, count = taken(*given, **named)
            self.batches += [{k: v.clone() for k, v in b.items() if torch.is_tensor(v)} for b in batches]
            return batches, count

        self.trainer.get_batch_samples = get_batch_samples

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trained = {name: p for name, p in self.trainer.model.named_parameters() if p.requires_grad}
        gradient = {adapter_name(name): p.grad.detach().clone() for name, p in trained.items()}
        torch.save({"gradient": gradient, "batches": self.batches}, Path(os.environ["SELFAUG_RECORD"]))
