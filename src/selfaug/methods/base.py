"""What may a way of fine-tuning change?

A method overrides only what it changes; trainer, seeds, data order and evaluation are the same for all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from selfaug.objective import NLL
from selfaug.step import TermOn

if TYPE_CHECKING:
    from selfaug.config import SelfAugConfig

__all__ = ["Method"]


class Method:
    """Plain supervised fine-tuning, to be changed by subclasses: ``loss = Σ nll / n_response``.

    Attributes:
        name: On the command line, and in results.
        summary: One line for ``--help``.
        defaults: Of the settings that are the method's own; ``None`` in the configuration means these.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    defaults: ClassVar[dict[str, object]] = {}

    def check(self, config: SelfAugConfig) -> None:
        """Raise :class:`selfaug.errors.ConfigError` where the settings cannot work with this method."""

    def terms(self, config: SelfAugConfig) -> tuple[TermOn, ...]:
        """The row terms of the loss with their weights."""
        return (TermOn(NLL(), "response", 1.0),)
