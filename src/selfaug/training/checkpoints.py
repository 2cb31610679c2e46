"""Checkpoints of a training: finds the one to resume from, and seals reference, method and token count into each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from selfaug.common.errors import ConfigError
from selfaug.run import checkpoint

if TYPE_CHECKING:
    from torch import Tensor, nn

    from selfaug.reference import Reference

__all__ = ["METHOD_FILE", "REFERENCE_FILE", "Checkpoints"]

REFERENCE_FILE = "selfaug_reference.safetensors"
METHOD_FILE = "selfaug_method.safetensors"


class Checkpoints:
    """The reference and the token count in checkpoints.

    Args:
        accelerator: Accelerator of the trainer, for sums over ranks.
        keep: Number of checkpoints to keep; ``None`` for all.
    """

    def __init__(self, accelerator: Any, keep: int | None) -> None:
        self._accelerator, self._keep = accelerator, keep
        self._reference: dict[str, str] | None = None
        self._tokens_before = 0
        self._tokens_here = 0

    def add_tokens(self, tokens: int) -> None:
        """Count tokens that this rank has trained on."""
        self._tokens_here += tokens

    def num_tokens(self) -> int:
        """Return the number of tokens trained on since the run began, over all ranks and resumptions."""
        here = torch.tensor(self._tokens_here, device=self._accelerator.device)
        return self._tokens_before + int(self._accelerator.reduce(here, reduction="sum"))

    def resume(self, wanted: str | bool | None, output_dir: Path) -> Path | None:
        """Return the complete checkpoint to resume from; ``None`` to begin.

        Raises:
            ConfigError: If the checkpoint is incomplete, or has the model alone.
        """
        folder = checkpoint.resolve(wanted, output_dir)
        if folder is None:
            return None
        state = checkpoint.read_seal(folder)
        if state.get("model_only"):
            raise ConfigError(
                f"{folder} was saved with save_only_model: without the optimizer's state the run would go on as "
                "another one.",
                "begin a new run without --save_only_model, or start one from this model or adapter.",
            )
        self._tokens_before = int(state.get("num_tokens", 0))
        return folder

    def restore_reference(self, reference: Reference, model: nn.Module, folder: Path | None) -> None:
        """Load the reference's tensors from a checkpoint, if it has any, and note the reference's digest.

        Raises:
            ConfigError: If the checkpoint was trained against another reference.
        """
        if folder is not None and (folder / REFERENCE_FILE).is_file():
            reference.load_tensors(load_file(folder / REFERENCE_FILE), model)
        self._reference = {"name": reference.name, "digest": reference.digest(model)}
        if folder is None:
            return
        stored = checkpoint.read_seal(folder).get("reference")
        if stored != self._reference:
            raise ConfigError(
                f"{folder} was trained against another reference ({stored}) than this run's ({reference.name!r}, "
                f"{self._reference['digest']}).",
                "resume with the same model and the same --reference, or begin a new run.",
            )

    @staticmethod
    def method_tensors(folder: Path | None) -> dict[str, Tensor]:
        """Return what the method remembered at a checkpoint; nothing to begin."""
        path = None if folder is None else folder / METHOD_FILE
        return load_file(path) if path is not None and path.is_file() else {}

    def begin(self, folder: Path) -> None:
        """Remove the seal of a folder that is about to be written."""
        checkpoint.unseal(folder)

    def finish(
        self,
        folder: Path,
        reference: Reference | None,
        tensors: Mapping[str, Tensor],
        *,
        method: Mapping[str, Tensor],
        num_tokens: int,
        model_only: bool,
        best: str | None,
    ) -> None:
        """Seal a checkpoint whose other files are written, and then delete old checkpoints.

        Args:
            folder: Folder of the checkpoint.
            reference: Reference of the run; ``None`` without one.
            tensors: Its tensors, whole.
            method: What the method remembers between steps.
            num_tokens: Number of tokens trained on.
            model_only: Whether the checkpoint has no state of the optimiser.
            best: Checkpoint with the best metric; ``None`` where it is not known.
        """
        state: dict[str, Any] = {"num_tokens": num_tokens, "model_only": model_only}
        if reference is not None:
            state["reference"] = self._reference or {"name": reference.name, "digest": None}
            if tensors:
                saved = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
                save_file(saved, folder / REFERENCE_FILE)
        if method:
            save_file({name: t.detach().cpu().contiguous() for name, t in method.items()}, folder / METHOD_FILE)
        checkpoint.seal(folder, state)
        checkpoint.rotate(folder.parent, self._keep, folder, best)
