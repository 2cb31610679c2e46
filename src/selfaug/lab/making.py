"""What the lab's model is a function of: its size and the settings of its training."""

from __future__ import annotations

from dataclasses import dataclass

from selfaug.common.errors import ConfigError

__all__ = ["PRECISIONS", "SIZES", "Making", "Size"]

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Size:
    """The shape of a model."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int


# Five heads and more: so many places back must the second layer see to find what a question asks for (lab/start.py).
SIZES = {"small": Size(160, 3, 5, 256), "base": Size(160, 4, 5, 384), "large": Size(192, 6, 6, 512)}


@dataclass(frozen=True)
class Making:
    """Everything that the weights are a function of, apart from this package and torch.

    Args:
        size: A key of :data:`SIZES`.
        steps: Optimiser steps.
        tokens: Of a step, about.
        learning_rate: Highest; it rises over 2 % of the steps, and falls to 0 over the last 40 %.
        vocabulary: Tokens.
        texts: Conversations that the tokenizer is made from.
        seed: Of weights, order and mixture.
        threads: Of the products; their number changes the order of sums.
        precision: Of the products: ``float32`` or ``bfloat16`` (autocast; the weights stay in float32).
    """

    size: str = "base"
    steps: int = 9000
    tokens: int = 2048
    learning_rate: float = 3e-3
    vocabulary: int = 1024
    texts: int = 20_000
    seed: int = 0
    threads: int = 1
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ConfigError(f"size={self.size!r} is not a size of the lab.", f"choose one of: {', '.join(SIZES)}.")
        if self.precision not in PRECISIONS:
            raise ConfigError(
                f"precision={self.precision!r} is not one of the lab's.", f"choose one of: {', '.join(PRECISIONS)}."
            )

    def rate(self, step: int) -> float:
        """The learning rate of a step: up, flat, down to 0."""
        up, down = max(1, self.steps // 50), max(1, self.steps * 2 // 5)
        return self.learning_rate * min(1.0, (step + 1) / up, (self.steps - step) / down)
