"""The interface of a part of an evaluation: its cache key, what it computes with a model, and its metrics.

A part is computed per side (base, tuned) into a payload of plain JSON, which is stored; from the two payloads its entry
in the results and its lines in the sample log are made, which costs nothing and is done anew each time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from selfaug.common.fingerprint import text_hash

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Finished", "Part", "Progress", "shown"]

_LONGEST_PROMPT = 4000


class Progress(Protocol):
    """A callback that is told how many steps of a side are done."""

    def __call__(self, done: int, /) -> None:
        """Set the number of steps that are done."""

    def expect(self, total: int) -> None:
        """Set the number of steps, where :meth:`Part.size` did not know it."""


@dataclass(frozen=True)
class Finished:
    """A part's entry in the results (without key and times), and its lines in the sample log (without its name)."""

    entry: dict[str, Any]
    samples: list[dict[str, Any]]


class Part(Protocol):
    """One part of an evaluation."""

    name: str

    @property
    def needs_model(self) -> bool:
        """Whether the loaded model computes it; otherwise another program loads its own."""

    def deciding(self) -> dict[str, Any]:
        """Return everything that decides the payloads besides the weights and the libraries' versions.

        It becomes part of the key under which a payload is stored. If the shape of the payload changes, add or raise a
        version here; otherwise :meth:`finish` receives stored payloads of the old shape.
        """

    def items(self) -> dict[str, int]:
        """Return the number of items of each subtask; of a part without subtasks, under its own name."""

    def only(self, places: Mapping[str, Sequence[int]]) -> Part:
        """Return the part with some of its items, one or more of each subtask, and in the same order."""

    def look_ahead(self) -> None:
        """Check before any model is loaded that the part can be computed; called only for parts that will be.

        Raises:
            UserError: If it cannot be computed.
        """

    def size(self) -> int | None:
        """Return the number of steps of one side; ``None`` where :meth:`compute` reports it with `Progress.expect`."""

    def compute(self, side: str, model: PreTrainedModel | None, progress: Progress) -> Any:
        """Compute the payload of one side."""

    def finish(self, payloads: Mapping[str, Any], seed: int) -> Finished:
        """Return the entry and the sample lines that follow from the payloads of both sides."""


def shown(prompt: str) -> dict[str, str]:
    """Return the prompt for the sample log, without its middle where it is long, and the hash of the whole prompt."""
    whole = str(text_hash(prompt))
    if len(prompt) > _LONGEST_PROMPT:
        half = _LONGEST_PROMPT // 2
        prompt = f"{prompt[:half]}\n[… {len(prompt) - 2 * half} characters …]\n{prompt[-half:]}"
    return {"prompt": prompt, "prompt_hash": whole}
