"""How does a training stop, and how does it go on? Whole checkpoints, the same reference, no step on a bad loss."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import SFTTrainer

from selfaug.common.errors import ConfigError
from selfaug.model.checks import check_head, check_packing
from selfaug.reference.checks import check_reference
from selfaug.run import checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from selfaug.reference import Reference

__all__ = ["ResumableTrainer", "StopOnNonFinite"]

_REFERENCE_FILE = "selfaug_reference.safetensors"


class ResumableTrainer(SFTTrainer):
    """`SFTTrainer` that checks model and reference before the first step, and resumes from whole checkpoints only.

    Its subclass sets ``_base_model`` and ``reference``, adds to ``_tokens_here`` and notes in ``_finite`` whether the
    losses of the step so far are finite.
    """

    _base_model: Any
    reference: Reference | None
    _reference_digest: str | None = None
    _finite: Tensor | None = None
    _tokens_before: int = 0
    _tokens_here: int = 0

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; resume only from whole checkpoints, with the same reference.

        Raises:
            ConfigError: If the checkpoint is torn or holds the model alone, or its reference is not this one.
        """
        folder = checkpoint.resolve(resume_from_checkpoint, Path(self.args.output_dir))
        if folder is not None:
            state = checkpoint.read_seal(folder)
            if state.get("model_only"):
                raise ConfigError(
                    f"{folder} was saved with save_only_model: without the optimizer's state the run would go on as "
                    "another one.",
                    "begin a new run without --save_only_model, or start one from this model or adapter.",
                )
            self._tokens_before = int(state.get("num_tokens", 0))
        if not any(p.is_meta for p in self._base_model.parameters()):
            with self.accelerator.autocast():
                self._check_model()
            if self.reference is not None:
                self._restore_reference(folder)
        return super().train(resume_from_checkpoint=None if folder is None else str(folder), **kwargs)

    def _check_model(self) -> None:
        check_head(self._base_model)
        if self.padding_free:
            check_packing(self._base_model, self.data_collator)
        if self.reference is not None and self.args.check_reference:
            check_reference(self._base_model, self.reference)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # transformers looks whether the training is over only after a step: a run that was stopped between its last
        # checkpoint and its end would be given one step too many.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _restore_reference(self, folder: Path | None) -> None:
        assert self.reference is not None
        if folder is not None and (folder / _REFERENCE_FILE).is_file():
            self.reference.load_tensors(load_file(folder / _REFERENCE_FILE))
        self._reference_digest = self.reference.digest(self._base_model)
        if folder is None:
            return
        stored = checkpoint.read_seal(folder).get("reference")
        if stored != {"name": self.reference.name, "digest": self._reference_digest}:
            raise ConfigError(
                f"{folder} was trained against another reference ({stored}) than this run's ({self.reference.name!r}, "
                f"{self._reference_digest}).",
                "resume with the same model and the same --reference, or begin a new run.",
            )

    def _num_tokens(self) -> int:
        """Tokens trained on since the run began, over all ranks and resumptions."""
        here = torch.tensor(self._tokens_here, device=self.accelerator.device)
        return self._tokens_before + int(self.accelerator.reduce(here, reduction="sum"))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # TRL's own step before this writes a model card that says "SFT"; the run folder has ours. Deleting old
        # checkpoints comes after the seal: killed in between, a whole one is always left.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        output_dir = Path(self._get_output_dir(trial=trial))
        folder = output_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            checkpoint.unseal(folder)
        self.accelerator.wait_for_everyone()
        try:
            Trainer._save_checkpoint(self, model, trial)
        finally:
            self.args.save_total_limit = limit
        num_tokens = self._num_tokens()
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            state: dict[str, Any] = {"num_tokens": num_tokens, "model_only": self.args.save_only_model}
            if self.reference is not None:
                state["reference"] = {
                    "name": self.reference.name,
                    "digest": self._reference_digest,
                }
                if self.reference.tensors():
                    tensors = {n: t.detach().cpu().contiguous() for n, t in self.reference.tensors().items()}
                    save_file(tensors, folder / _REFERENCE_FILE)
            checkpoint.seal(folder, state)
            checkpoint.rotate(output_dir, limit, folder, self.state.best_model_checkpoint)


class StopOnNonFinite(TrainerCallback):
    """Stops the run before the optimiser moves when a loss of the step is not finite."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self._trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the backward pass of the last micro-batch."""
        finite, self._trainer._finite = self._trainer._finite, None
        accelerator = self._trainer.accelerator
        if finite is not None and accelerator.num_processes > 1:
            # Agreed between ranks: one that went on alone would wait for the others in its next collective.
            finite = accelerator.reduce((~finite).to(torch.int64), reduction="sum") == 0
        if finite is not None and not bool(finite):
            raise FloatingPointError(
                f"the loss of step {state.global_step + 1} is not finite; the weights are as they were before it"
            )
