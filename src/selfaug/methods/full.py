"""`full`: fine-tunes every weight, without an adapter."""

from __future__ import annotations

from typing import ClassVar

from selfaug.methods.base import Method

__all__ = ["Full"]


class Full(Method):
    """``loss = Σ nll / n_response`` over all weights of the model, as `trl sft` does by default.

    The learning rate is left to the user: full fine-tuning usually needs one that is ten to a hundred times smaller
    than LoRA's.
    """

    name: ClassVar[str] = "full"
    summary: ClassVar[str] = "every weight is trained, without an adapter"
    needs: ClassVar[str] = "memory for all weights' gradients"
    adapter: ClassVar[str] = "none"
