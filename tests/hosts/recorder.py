"""Recorder of one step for tests in other people's launchers: importing it changes every `transformers.Trainer`.

As training begins, the adapter is moved; the batches and the gradient of each step go to the file that STEP_RECORD
names. STEP_PLANTED names a mistake that is made in the running trainer.
"""

from __future__ import annotations

import functools
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from tests.models import adapter_name, perturb_adapter


class Recorder(TrainerCallback):  # type: ignore[misc]
    def __init__(self, trainer: Any) -> None:
        self.trainer, self.batches = trainer, []
        taken = trainer.get_batch_samples

        def get_batch_samples(*given: Any, **named: Any) -> Any:
            batches, count = taken(*given, **named)
            self.batches += [{k: v.clone() for k, v in b.items() if torch.is_tensor(v)} for b in batches]
            return batches, count

        trainer.get_batch_samples = get_batch_samples

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        perturb_adapter(self.trainer.model)
        planted = os.environ.get("STEP_PLANTED")
        if planted == "divided again":
            self.trainer.loss_is_scaled_for_ga = self.trainer.model_accepts_loss_kwargs = False
        elif planted == "adapter on":
            from selfaug.reference.adapter import BaseReference

            BaseReference.serving = lambda self, model: nullcontext(model)
        elif planted == "one document":
            from selfaug.planning import plan

            plan.document_ids = lambda batch: torch.zeros_like(batch["input_ids"])
        else:
            assert planted is None, planted

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trained = {name: p for name, p in self.trainer.model.named_parameters() if p.requires_grad}
        gradient = {adapter_name(name): p.grad.detach().clone() for name, p in trained.items()}
        file = Path(os.environ["STEP_RECORD"])
        rank = self.trainer.args.process_index
        kept = {"gradient": gradient, "batches": self.batches, "alone": self.trainer.args.world_size == 1}
        torch.save(kept, file if rank == 0 else file.with_suffix(f".{rank}"))


_train = Trainer.train


@functools.wraps(_train)
def _recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
    self.add_callback(Recorder(self))
    return _train(self, *args, **kwargs)


Trainer.train = _recorded
