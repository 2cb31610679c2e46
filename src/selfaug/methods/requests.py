"""What a method may ask for before the first step: texts, rows to mix in, an adapter's start, rows that are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from selfaug.data.record import Conversation, Item
    from selfaug.generation.scribe import Scribe

__all__ = ["Compose", "Mix", "Rewrite", "Start", "Texts"]

Rewrite: TypeAlias = Callable[[Sequence["Item"], "Scribe"], list["Item"]]


@dataclass(frozen=True)
class Texts:
    """``count`` rows of a file or folder in any format, or of the training prompts where ``path`` is ``None``."""

    path: Path | None
    count: int

    @property
    def name(self) -> str:
        """For people."""
        return "the training prompts" if self.path is None else str(self.path)


@dataclass(frozen=True)
class Mix:
    """Rows of a file or folder in any format, ``ratio`` of them for each training row."""

    path: Path
    ratio: float


@dataclass(frozen=True)
class Start:
    """Where the adapter starts: a part of the pretrained weights, taken out of them.

    Args:
        kind: ``corda`` or ``pissa``, as PEFT's ``init_lora_weights`` calls them.
        texts: What it looks at, if anything.
    """

    kind: str
    texts: Texts | None = None


@dataclass(frozen=True)
class Compose:
    """Rows that the base writes itself: ``ratio`` for each training row, and what writes so many.

    They are conversations, or rows of ``input_ids`` and ``labels`` that need no template.
    """

    ratio: float
    write: Callable[[Scribe, int], list[Conversation] | list[dict[str, list[int]]]]
