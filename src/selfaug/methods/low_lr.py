"""`low-lr`: plain fine-tuning with a smaller learning rate, as a control."""

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

    It shows how much of what a method keeps a smaller step would keep as well (see arXiv 2509.20758).
    """

    @dataclass(frozen=True)
    class Options:
        """Options of `low-lr`."""

        lr_factor: float = option(0.1, "Factor on the learning rate; 1 is plain fine-tuning.", above=0.0)

    name: ClassVar[str] = "low-lr"
    summary: ClassVar[str] = "plain fine-tuning at a fraction of the learning rate"
    formula: ClassVar[str] = "NLL, learning_rate·lr_factor"
    source: ClassVar[str] = "control; see 2509.20758"
    strength: ClassVar[str] = "lr_factor"

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return the factor on the learning rate."""
        return Changes(learning_rate_factor=float(self.options(config).lr_factor))
