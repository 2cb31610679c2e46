"""The state of a run before its first step, for everything that uses the base model there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.data.prompts import Renderer
from selfaug.reference.adapter import digest

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from selfaug.methods import Method
    from selfaug.training.config import SelfAugConfig

__all__ = ["BeforeTraining"]


@dataclass(frozen=True)
class BeforeTraining:
    """A run before its first step.

    Args:
        model: Causal LM inside all wrappers; with its adapter off it is the base.
        peft_config: Configuration of the active adapter; ``None`` for full fine-tuning.
        config: Settings of the run.
        method: Method of the run.
        accelerator: Accelerator of the trainer.
        tokenizer: Tokenizer of the model.
        chosen_renderer: Renderer of prompts; ``None`` for the tokenizer's default.
        max_length: Longest training row in tokens.
        takes_items: Whether the training data set was given as records or conversations, in a table.
        rows: Tokenised training rows.
        rows_of: Function that tokenises the rows of a file as training rows are.
        single_rows: Whether rows must pass one at a time, since hidden states depend on the rest of a batch.
    """

    model: nn.Module
    peft_config: Any
    config: SelfAugConfig
    method: Method
    accelerator: Accelerator
    tokenizer: PreTrainedTokenizerBase
    chosen_renderer: Renderer | None
    max_length: int | None
    takes_items: bool
    rows: Any
    rows_of: Callable[[Path], Any]
    single_rows: bool

    @property
    def renderer(self) -> Renderer:
        """Renderer of prompts."""
        return self.chosen_renderer or Renderer.for_tokenizer(self.tokenizer)

    @property
    def folder(self) -> Path:
        """Folder of the results that a resumed run needs again."""
        return Path(self.config.output_dir)

    @property
    def rank(self) -> int:
        """Index of this process."""
        return int(self.accelerator.process_index)

    @property
    def ranks(self) -> int:
        """Number of processes."""
        return int(self.accelerator.num_processes)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the autocast context of the run's number format."""
        context: AbstractContextManager[Any] = self.accelerator.autocast()
        return context

    def base_weights(self) -> dict[str, Tensor]:
        """Return the base's weights by name: all but the adapter's."""
        adapted = self.peft_config is not None
        return {name: p for name, p in self.model.named_parameters() if not (adapted and p.requires_grad)}

    def base_facts(self) -> dict[str, str]:
        """Return what the base's outputs depend on besides their inputs: digest of the weights, number formats."""
        return {
            "base": digest(self.base_weights()),
            "dtype": str(self.model.dtype),
            "autocast": str(self.accelerator.mixed_precision),
        }
