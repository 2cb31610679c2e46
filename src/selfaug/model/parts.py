"""The parts of a causal language model: body, head, auxiliary loss, and what its hidden states depend on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from selfaug.common.errors import ConfigError
from selfaug.objective.head import LMHead

__all__ = [
    "attends_throughout", "auxiliary_loss", "body_of", "depends_on_what_follows", "head_layer", "head_of",
    "layer_types", "logit_shape", "model_type", "takes_documents_in_a_row",
]  # fmt: skip

Body = Callable[..., Any]


def body_of(model: nn.Module) -> nn.Module:
    """Return the part of a causal LM below its head; called like the model, it returns ``last_hidden_state``."""
    body = getattr(model, "base_model", None)
    if not isinstance(body, nn.Module) or body is model:
        raise ConfigError(
            f"{type(model).__name__} has no body below its head (attribute {getattr(model, 'base_model_prefix', '')!r}"
            "), so hidden states cannot be had without full logits.",
            "use a causal language model of transformers (AutoModelForCausalLM).",
        )
    return body


def logit_shape(config: Any) -> tuple[float, float | None]:
    """Return the scale and soft cap that the model applies to its logits, from its text configuration.

    The scale is ``logit_scale`` (Cohere), ``lm_head_multiplier`` (Falcon-H1), ``output_multiplier`` (Muse) or
    ``logits_scaling``, which is a divisor in Granite and MiniCPM and a factor in HyperCLOVA X. The cap is
    ``final_logit_softcapping``; ``None`` for no cap.
    """
    text = config.get_text_config()
    soft_cap = getattr(text, "final_logit_softcapping", None)
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        scale = getattr(text, name, None)
        if scale is not None:
            return float(scale), soft_cap
    scaling = getattr(text, "logits_scaling", None)
    if scaling is None:
        return 1.0, soft_cap
    return (float(scaling) if text.model_type == "hyperclovax" else 1.0 / float(scaling)), soft_cap


def head_layer(model: nn.Module, *, reference: bool = False) -> Any:
    """Return the model's output layer, or with ``reference`` the one that PEFT copied for training.

    Raises:
        ConfigError: If the output layer is not a linear layer.
    """
    layer: Any = model.get_output_embeddings()  # type: ignore[operator]
    wrapped = getattr(layer, "modules_to_save", None)
    if wrapped is not None:
        layer = layer.original_module if reference else wrapped[layer.active_adapters[0]]
    if type(layer).__module__.startswith("peft.") or not isinstance(getattr(layer, "weight", None), Tensor):
        raise ConfigError(
            f"the output projection of {type(model).__name__} is a {type(layer).__name__}, whose weights are not the "
            "logits' matrix: alignment projects hidden states itself and would miss what was added.",
            "leave 'lm_head' out of target_modules (and its tokens out of trainable_token_indices); to train the head, "
            "name it in modules_to_save.",
        )
    return layer


def head_of(model: nn.Module, *, reference: bool = False) -> LMHead:
    """Return the output projection with the model's scale and cap; sharded weights (FSDP2) are gathered.

    Raises:
        ConfigError: As :func:`head_layer`.
    """
    layer = head_layer(model, reference=reference)
    weight_VH, bias_V = _whole(layer.weight), getattr(layer, "bias", None)
    scale, soft_cap = logit_shape(model.config)
    return LMHead(weight_VH, None if bias_V is None else _whole(bias_V), scale, soft_cap)


def _whole(weight: Tensor) -> Tensor:
    # Of ZeRO-3 the parameter itself is returned: `gathered_head` fills it for the time of its use.
    gather = getattr(weight, "full_tensor", None)
    return weight if gather is None else gather()


def depends_on_what_follows(config: Any) -> bool:
    """Whether a prompt's hidden states depend on the tokens after it, or on the longest row of the batch.

    Such a prompt cannot be cut at its boundary, and the reference pass takes the micro-batch as it is.
    """
    text = config.get_text_config()
    parameters = getattr(text, "rope_parameters", None) or {}
    nested = [p for p in parameters.values() if isinstance(p, dict)]
    kinds = {p.get("rope_type") for p in [parameters, *nested]}
    bidirectional = bool(getattr(text, "use_bidirectional_attention", False))
    return bool(kinds & {"dynamic", "longrope"}) or bidirectional or not getattr(text, "is_causal", True)


def layer_types(config: Any) -> frozenset[str]:
    """Return the kinds of a model's layers as transformers names them (``full_attention``, ``conv``, …).

    Empty where the configuration does not list them: such a model is a state-space model, or has attention throughout.
    """
    text = config.get_text_config()
    return frozenset(getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or ())


def attends_throughout(config: Any) -> bool:
    """Whether every layer attends to all tokens before, without a window and without a state along the row."""
    text = config.get_text_config()
    kinds = layer_types(config)
    if kinds:
        return kinds == {"full_attention"}
    others = ("sliding_window", "mamba_d_state", "state_size", "ssm_cfg")
    return not any(getattr(text, name, None) for name in others)


def takes_documents_in_a_row(model: nn.Module) -> bool:
    """Whether the model computes several documents in one row separately, at no more than their own cost.

    This holds with flash attention, unless some layers carry a state along the row.
    """
    from transformers.utils.generic import is_flash_attention_requested

    config: Any = model.config
    stateful = any("attention" not in kind or "linear" in kind for kind in layer_types(config))
    stateful |= any(
        getattr(config.get_text_config(), name, None) for name in ("mamba_d_state", "state_size", "ssm_cfg")
    )
    return is_flash_attention_requested(config.get_text_config()) and not stateful


def auxiliary_loss(model: nn.Module, outputs: Any, attention_mask: Tensor | None) -> Tensor:
    """Return the load-balancing loss of a mixture of experts, from the router logits of the training pass."""
    # Every mixture of experts in transformers uses Mixtral's.
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    text = model.config.get_text_config()  # type: ignore[union-attr, operator]
    loss = load_balancing_loss_func(outputs.router_logits, text.num_experts, text.num_experts_per_tok, attention_mask)
    return torch.as_tensor(loss)


def model_type(model: Any, args: Any) -> str:
    """Return the ``model_type`` of a model, or of the model that a path or hub name stands for."""
    if not isinstance(model, str):
        return str(model.config.model_type)
    from transformers import AutoConfig

    given = args.model_init_kwargs or {}
    config = AutoConfig.from_pretrained(
        model, revision=given.get("revision"), trust_remote_code=given.get("trust_remote_code", args.trust_remote_code)
    )
    return str(config.model_type)
