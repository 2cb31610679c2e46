"""What a method may request: texts, rows and an adapter's start before the first step, and work around each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from selfaug.data.record import Conversation, Item
    from selfaug.generation.writer import Writer

__all__ = ["Compose", "Mix", "Proximal", "Rate", "Rewrite", "Start", "Texts"]

Rewrite: TypeAlias = Callable[[Sequence["Item"], "Writer"], list["Item"]]


@dataclass(frozen=True)
class Texts:
    """Texts on which the base is run.

    Args:
        path: File or folder in any format; ``None`` for the training prompts.
        count: Number of rows.
    """

    path: Path | None
    count: int

    @property
    def name(self) -> str:
        """Description of the texts for messages."""
        return "the training prompts" if self.path is None else str(self.path)


@dataclass(frozen=True)
class Mix:
    """Rows to mix into the training rows.

    Args:
        path: File or folder in any format.
        ratio: Number of them for each training row.
    """

    path: Path
    ratio: float


@dataclass(frozen=True)
class Start:
    """The start of an adapter as a part of the pretrained weights, which is taken out of them.

    Args:
        kind: ``corda`` or ``pissa``, as in PEFT's ``init_lora_weights``.
        texts: Texts for CorDA's covariances; ``None`` where none are needed.
    """

    kind: str
    texts: Texts | None = None


@dataclass(frozen=True)
class Compose:
    """Rows that the base writes, to mix into the training rows.

    Args:
        ratio: Number of them for each training row.
        write: Function that writes a given number of them: conversations, or rows of ``input_ids`` and ``labels``.
    """

    ratio: float
    write: Callable[[Writer, int], list[Conversation] | list[dict[str, list[int]]]]


@dataclass(frozen=True)
class Rate:
    """A factor on the learning rate of each optimiser step.

    Args:
        factor: Function from the smoothed NLL of response tokens (nats) to the factor.
        smoothing: Weight in [0, 1) of earlier steps in the exponential average of the step's mean NLL, whose first
            value is that of the first step.
    """

    factor: Callable[[float], float]
    smoothing: float


@dataclass(frozen=True)
class Proximal:
    """Weights of response tokens by their likelihood under the weights of an earlier step.

    Args:
        weigh: Function from the NLL of a micro-batch's response tokens (N, nats) under the current weights, and under
            the earlier ones (N), to their weights in the loss (N, 0 or more).
        renew_steps: Number of optimiser steps after which the earlier weights are replaced by the current ones.
    """

    weigh: Callable[[Tensor, Tensor], Tensor]
    renew_steps: int
