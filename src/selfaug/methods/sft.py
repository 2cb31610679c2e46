"""`sft`: plain supervised fine-tuning, the baseline of all comparisons."""

from __future__ import annotations

from typing import ClassVar

from selfaug.methods.base import Method

__all__ = ["SFT"]


class SFT(Method):
    """``loss = Σ nll / n_response``, as in `trl sft`."""

    name: ClassVar[str] = "sft"
    summary: ClassVar[str] = "plain supervised fine-tuning, as `trl sft`"
