"""The interface of a part of an evaluation: what decides it, what it asks of a model, how answers become metrics.

A part is computed per side (base, tuned) into a payload of plain JSON, which is stored; from the two payloads its entry
in the results and its lines in the sample log are made, which costs nothing and is done anew each time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from selfaug.common.fingerprint import text_hash

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Finished", "Part", "Progress", "shown"]

_LONGEST_PROMPT = 4000


class Progress(Protocol):
    """Told how far the computing of a side is."""

    def __call__(self, done: int, /) -> None:
        """So many steps are done."""

    def expect(self, total: int) -> None:
        """So many steps there are, where :meth:`Part.size` did not know it."""


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
        """Whether the loaded model computes it; else another program loads its own."""

    def deciding(self) -> dict[str, Any]:
        """Everything besides the weights and the libraries' versions that decides the payloads.

        It becomes part of the key under which a payload is stored. If the shape of the payload changes, add a version
        here (or raise it), or :meth:`finish` receives stored payloads of the old shape.
        """

    def look_ahead(self) -> None:
        """Refuse, before any model is loaded, what would stop it later; called only if it is to be computed.

        Raises:
            UserError: If it cannot be computed.
        """

    def size(self) -> int | None:
        """Steps of one side that progress counts to; ``None`` where they are known only to who computes."""

    def compute(self, side: str, model: PreTrainedModel | None, progress: Progress) -> Any:
        """The payload of one side."""

    def finish(self, payloads: Mapping[str, Any], seed: int) -> Finished:
        """What comes of both sides."""


def shown(prompt: str) -> dict[str, str]:
    """The prompt for the sample log, its middle left out where it is long, and the hash of the whole."""
    whole = str(text_hash(prompt))
    if len(prompt) > _LONGEST_PROMPT:
        half = _LONGEST_PROMPT // 2
        prompt = f"{prompt[:half]}\n[… {len(prompt) - 2 * half} characters …]\n{prompt[-half:]}"
    return {"prompt": prompt, "prompt_hash": whole}
