"""Plain supervised fine-tuning: the base line that everything is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from selfaug.errors import ConfigError
from selfaug.methods.base import Method

if TYPE_CHECKING:
    from selfaug.config import SelfAugConfig

__all__ = ["SFT"]


class SFT(Method):
    """``loss = Σ nll / n_response``: what `trl sft` trains."""

    name: ClassVar[str] = "sft"
    summary: ClassVar[str] = "plain supervised fine-tuning, as `trl sft`"
    defaults: ClassVar[dict[str, object]] = {"alpha": 0.0}

    def check(self, config: SelfAugConfig) -> None:
        """Refuse an α above 0: it would have no effect."""
        if config.alpha:
            raise ConfigError(
                f"alpha={config.alpha} has no effect with method='sft', which aligns nothing.",
                "use --method selfaug, or leave alpha out.",
            )
