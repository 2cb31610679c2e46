"""Every private or fragile name of trl, transformers and peft that we lean on, in one place.

`tests/unit/test_trl_names.py` fails when one of them moves, and says which of our files then needs a look.
"""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["gathered_head", "switchable_layers"]


def switchable_layers(model: nn.Module) -> list[Any]:
    """Modules of PEFT whose ``_disable_adapters`` flag, when true, makes them give their base layer's output.

    LoRA and its kin (`BaseTunerLayer`), and the wrappers of `modules_to_save` and `trainable_token_indices`.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return [m for m in model.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]


def gathered_head(weight: Any, bias: Any) -> Any:
    """Context in which a head sharded by DeepSpeed ZeRO-3 is whole; does nothing elsewhere."""
    from trl.trainer.utils import maybe_gather_lm_head_ctx

    return maybe_gather_lm_head_ctx(weight, bias)
