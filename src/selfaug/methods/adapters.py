"""Checks that the adapter fits the method, before any weight is loaded where possible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from selfaug.common.errors import ConfigError
from selfaug.methods.base import Method
from selfaug.reference.checks import check_kind

if TYPE_CHECKING:
    from selfaug.model.libraries import LoraPair
    from selfaug.training.config import SelfAugConfig

__all__ = ["asks_base", "check_adapter", "check_weights", "trains_without_adapter"]

# Settings of LoRA with which the update is more than s · B A.
_MORE_THAN_LORA = ("use_dora", "modules_to_save", "trainable_token_indices", "target_parameters", "lora_bias")


def trains_without_adapter(method: Method) -> bool:
    """Whether the method fine-tunes all weights, without an adapter."""
    return any(part.adapter == "none" for part in method.parts)


def asks_base(method: Method, config: SelfAugConfig) -> bool:
    """Whether the method runs the base before the first step, so that "adapter off" must be the base."""
    changes = method.changes(config)
    writes = changes.generates and config.generation_url is None
    return changes.weigh is not None or changes.fisher is not None or writes


def check_weights(method: str, pairs: Sequence[LoraPair]) -> None:
    """Refuse pretrained weights that a method cannot compute with.

    Args:
        method: Name of the method.
        pairs: LoRA layers of the model.

    Raises:
        ConfigError: With the remedy.
    """
    for pair in pairs:
        if pair.W is None or pair.W.dim() != 2:
            raise ConfigError(
                f"method={method!r} takes the weights of linear layers apart, and there is an adapter on a layer of "
                f"another kind ({type(pair.layer).__name__}).",
                "leave embeddings and convolutions out of target_modules.",
            )
        if not pair.W.is_floating_point():
            raise ConfigError(
                f"method={method!r} takes the pretrained weights apart, and they are quantised.",
                "load the model without quantisation, or choose another method.",
            )


def check_adapter(method: Method, peft_config: Any) -> None:
    """Refuse an adapter that does not work with the method, or a missing one.

    Args:
        method: Method or combination of methods.
        peft_config: Configuration of the adapter; ``None`` for full fine-tuning.

    Raises:
        ConfigError: With the remedy.
    """
    if peft_config is not None:
        check_kind(peft_config)
    for part in method.parts:
        if part.adapter == "none" and peft_config is not None:
            raise ConfigError(
                f"method={part.name!r} trains all weights, but there is an adapter.",
                "leave the adapter out (--use_peft false), or choose --method sft.",
            )
        if part.adapter not in ("lora", "osf"):
            continue
        if peft_config is None:
            raise ConfigError(
                f"method={part.name!r} acts on a LoRA adapter, and full fine-tuning has none.",
                "train an adapter (--use_peft true), or choose another method.",
            )
        if part.adapter == "osf" and peft_config.peft_type == "OSF":
            continue
        if peft_config.peft_type != "LORA":
            raise ConfigError(
                f"method={part.name!r} acts on a LoRA adapter, and this one is of type "
                f"{getattr(peft_config.peft_type, 'value', peft_config.peft_type)}.",
                "use LoRA, or choose another method.",
            )
        more = [name for name in _MORE_THAN_LORA if getattr(peft_config, name, None)]
        if getattr(peft_config, "bias", "none") != "none":
            more.append("bias")
        if more:
            raise ConfigError(
                f"method={part.name!r} takes the update to be LoRA's product B·A, and with {', '.join(more)} it is "
                "more than that.",
                f"leave {', '.join(more)} at the default, or choose another method.",
            )
