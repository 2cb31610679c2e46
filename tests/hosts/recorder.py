"""Recorder of one step for tests in other people's launchers: importing it changes every `transformers.Trainer`.

As training begins, the adapter is moved; the batches and the gradient of each step go to the file that STEP_RECORD
names. :func:`planted` makes a known mistake in the trainings inside it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import Trainer, TrainerCallback

from tests.models import adapter_name, perturb_adapter


@contextmanager
def _serving_with_adapter(self: Any, model: Any) -> Iterator[Any]:
    with torch.no_grad():
        yield model


@contextmanager
def planted(mistake: str | None) -> Iterator[None]:
    if mistake == "divided again":
        with mock.patch.dict(os.environ, STEP_PLANTED=mistake):
            yield
    elif mistake == "adapter on in the reference pass":
        with mock.patch("selfaug.reference.adapter.BaseReference.serving", _serving_with_adapter):
            yield
    elif mistake in ("a row taken for one document", "padding taken for a document"):  # the first of packed rows
        whole = mock.patch("selfaug.planning.plan.document_ids", lambda batch, *_: torch.zeros_like(batch["input_ids"]))
        with whole:
            yield
    else:
        assert mistake is None, mistake
        yield


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
        if os.environ.get("STEP_PLANTED") == "divided again":
            self.trainer.loss_is_scaled_for_ga = self.trainer.model_accepts_loss_kwargs = False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trained = {name: p for name, p in self.trainer.model.named_parameters() if p.requires_grad}
        gradient = {adapter_name(name): p.grad.detach().clone() for name, p in trained.items()}
        file = Path(os.environ["STEP_RECORD"])
        rank = self.trainer.args.process_index
        kept = {"gradient": gradient, "batches": self.batches}
        torch.save(kept, file if rank == 0 else file.with_suffix(f".{rank}"))


_train = Trainer.train


@functools.wraps(_train)
def _recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
    self.add_callback(Recorder(self))
    return _train(self, *args, **kwargs)


Trainer.train = _recorded
