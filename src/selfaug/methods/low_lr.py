"""`low-lr`: plain fine-tuning, slower: how much of what a method keeps would a smaller step have kept?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from selfaug.methods.base import Changes, Method
from selfaug.methods.options import option

if TYPE_CHECKING:
    from selfaug.training.config import SelfAugConfig

__all__ = ["LowLR"]


class LowLR(Method):
    """`sft` with ``learning_rate · lr_factor``: the learning-rate-matched control.

    That a smaller learning rate alone forgets less: arXiv 2509.20758.
    """

    @dataclass(frozen=True)
    class Options:
        """Of `low-lr`."""

        lr_factor: float = option(0.1, "What the learning rate is multiplied by; 1 is plain fine-tuning.", above=0.0)

    name: ClassVar[str] = "low-lr"
    summary: ClassVar[str] = "plain fine-tuning at a fraction of the learning rate"
    formula: ClassVar[str] = "NLL, learning_rate·lr_factor"
    source: ClassVar[str] = "control; see 2509.20758"
    strength: ClassVar[str] = "lr_factor"

    def changes(self, config: SelfAugConfig) -> Changes:
        """The smaller step."""
        return Changes(learning_rate_factor=float(self.options(config).lr_factor))
