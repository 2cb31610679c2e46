"""Plain supervised fine-tuning: the base line that everything is compared with."""

from __future__ import annotations

from typing import ClassVar

from selfaug.methods.base import Method

__all__ = ["SFT"]


class SFT(Method):
    """``loss = Σ nll / n_response``: what `trl sft` trains."""

    name: ClassVar[str] = "sft"
    summary: ClassVar[str] = "plain supervised fine-tuning, as `trl sft`"
