"""Checks on a few tokens, before the first step, that the model behaves as the objective assumes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from selfaug.common.errors import ConfigError
from selfaug.model.libraries import gathered_head
from selfaug.model.parts import body_of, head_layer, head_of
from selfaug.model.sharding import whole_shape
from selfaug.model.switch import evaluating
from selfaug.objective.blocks import compute_dtype

__all__ = [
    "check_documents_apart", "check_head", "check_packing", "final_hidden", "may_skip_weights", "probe_tokens",
]  # fmt: skip

# Names of the number of experts, and of the probability that a layer is left out, in configurations of transformers.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_DROPPED = ("layerdrop", "layer_drop", "stochastic_depth_prob")


def probe_tokens(model: nn.Module) -> Tensor:
    """Return 8 token ids spread over the vocabulary, 1 × 8."""
    weight = head_layer(model).weight
    return (torch.arange(1, 9) * 7919 % whole_shape(weight)[0])[None].to(weight.device)


def final_hidden(model: nn.Module, input_ids: Tensor) -> Tensor:
    """Return the final hidden states of one row, T × H."""
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "use_cache": False}
    hidden: Tensor = body_of(model)(**inputs).last_hidden_state
    return hidden[0]


def check_head(model: nn.Module) -> None:
    """Check that the head as we read it gives the model's own logits.

    Raises:
        ConfigError: If it does not, since the architecture changes its logits in a way that we do not know.
    """
    input_ids = probe_tokens(model)
    with torch.no_grad(), evaluating(model):
        # `forward` itself: where this runs inside a call of a sharded model, its hooks have run already.
        inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "use_cache": False}
        own = model.forward(**inputs).logits[0].float()
        hidden, head = final_hidden(model, input_ids), head_of(model)
        with gathered_head(head.weight_VH, head.bias_V):
            ours = head.logits(hidden.to(head.weight_VH.dtype)).float()
    largest = ours.abs().max().clamp(min=1e-6)
    # 16-bit products round each logit to 8 bits; a forgotten scale or cap is off by far more.
    tolerance = 0.03 if compute_dtype(head, input_ids.device).itemsize == 2 else 1e-3
    if own.shape != ours.shape or ((own - ours).abs().max() / largest) > tolerance:
        raise ConfigError(
            f"{type(model).__name__} does something to its logits that selfaug does not know (difference "
            f"{(own - ours).abs().max().item():.3g}, logits reach {largest.item():.3g}), so its loss would be wrong.",
            "please report this architecture; known are a scale, a bias and a soft cap.",
        )


def check_packing(model: nn.Module, collate: Any) -> None:
    """Check that two documents in one padding-free row give the hidden states that each gives alone.

    Args:
        model: Causal LM inside PEFT's wrapper.
        collate: Padding-free collator of the trainer.

    Raises:
        ConfigError: If the model cannot take such rows here, or its documents see each other.
    """
    token_ids = probe_tokens(model)[0].tolist()
    documents = [token_ids[:5], token_ids[5:] + token_ids[:2]]
    batch = collate([{"input_ids": ids, "labels": ids} for ids in documents])
    device = next(model.parameters()).device
    inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items() if k != "labels"}
    with torch.no_grad(), evaluating(model):
        try:
            together = body_of(model)(**inputs, use_cache=False).last_hidden_state[0]
        except ValueError as error:
            raise ConfigError(
                f"{type(model).__name__} cannot take several documents in one row here: {error}",
                "set --packing false and --padding_free false, or install the kernels that it asks for.",
            ) from error
        alone = torch.cat([final_hidden(model, torch.tensor([ids], device=device)) for ids in documents])
    difference = ((together[: len(alone)] - alone).float().norm() / alone.float().norm()).item()
    # Kernels for packed rows add in another order; documents that attend to each other differ by tens of percent.
    if not difference < 0.05:
        raise ConfigError(
            f"documents in one row of {type(model).__name__} see each other (hidden states differ by {difference:.0%} "
            "from those of each document alone), so packing would train on mixed-up prompts.",
            "set --packing false and --padding_free false, or choose an attention implementation that keeps documents "
            "apart (--attn_implementation sdpa or flash_attention_2).",
        )


def check_documents_apart(model: nn.Module, inputs: Mapping[str, Any], documents_BT: Tensor) -> None:
    """Check that other tokens in the first document of each row leave the hidden states of the later ones as they are.

    Args:
        model: Causal LM inside PEFT's wrapper.
        inputs: Micro-batch as its trainer gives it to the model, without labels.
        documents_BT: Number of each token's document in its row; -1 for padding.

    Raises:
        ConfigError: If documents in one row see each other.
    """
    input_ids_BT = inputs["input_ids"]
    documents_BT = documents_BT.to(input_ids_BT.device)
    first_B1 = documents_BT.masked_fill(documents_BT < 0, documents_BT.max() + 1).amin(dim=1, keepdim=True)
    later_BT = documents_BT > first_B1
    changed_BT = torch.where(documents_BT == first_B1, (input_ids_BT == 0).to(input_ids_BT), input_ids_BT)
    with torch.no_grad(), evaluating(model):
        as_given, changed = (
            body_of(model)(**{**inputs, "input_ids": ids_BT, "use_cache": False}).last_hidden_state[later_BT].float()
            for ids_BT in (input_ids_BT, changed_BT)
        )
    difference = ((changed - as_given).norm() / as_given.norm().clamp(min=1e-12)).item()
    # Experts may add a token's terms in another order where other tokens share its batch.
    tolerance = 0.01 if next(model.parameters()).dtype.itemsize == 2 else 1e-4
    if not difference <= tolerance:
        raise ConfigError(
            f"documents in one row of {type(model).__name__} see each other (other tokens in the first change the "
            f"hidden states of the later ones by {difference:.0%}), while the reference pass takes each alone, so "
            "alignment would hold the model to another text.",
            "turn packing off, or use an attention implementation with which the trainer keeps documents apart (often "
            "flash_attention_2, or sdpa without an attention mask).",
        )


def may_skip_weights(model: nn.Module) -> bool:
    """Whether a training pass may give a trained weight no gradient, as DDP must know.

    It may if a few tokens give it none, or if the tokens decide which weights are used: in a mixture of experts, and
    where layers are left out at random. The head is not looked at, since the objective always gives it a gradient.
    """
    text: Any = model.config.get_text_config()  # type: ignore[union-attr, operator]
    counts = [getattr(text, name, None) or 0 for name in (*_EXPERTS, *_DROPPED)]
    if any(isinstance(count, (int, float)) and count > 0 for count in counts):
        return True
    head = {id(p) for p in head_layer(model).parameters()}
    trained = [p for p in model.parameters() if p.requires_grad and id(p) not in head]
    with torch.enable_grad(), evaluating(model):
        hidden = final_hidden(model, probe_tokens(model))
        if not trained or not hidden.requires_grad:
            return bool(trained)
        gradients = torch.autograd.grad(hidden.float().sum(), trained, allow_unused=True)
    return any(gradient is None for gradient in gradients)
