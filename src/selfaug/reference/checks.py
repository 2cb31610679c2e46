"""Checks that the reference is what its name says.

Known ways in which "adapter off" is not the base are refused by name, before any weight is loaded where possible.
Before the first step, the reference is also tested on a few tokens: a perturbed adapter must change the tuned model and
not the reference. With reference `base`, the unperturbed adapter must not change the model: the KL between both must be
below 1e-6, or below what rounding can give where the adapter computes its layers' outputs anew (DoRA).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from selfaug.common.errors import ConfigError
from selfaug.model.checks import final_hidden, probe_tokens
from selfaug.model.libraries import computes_anew, gathered_head, switchable_layers, trained_tokens
from selfaug.model.parts import head_of
from selfaug.model.sharding import held, released, whole
from selfaug.model.switch import evaluating, uncached_autocast
from selfaug.objective import BaseToTuned
from selfaug.reference import Reference

__all__ = ["check_full_tuning", "check_kind", "check_peft", "check_quantised", "check_reference"]

# Values of PEFT's `init_lora_weights` that leave the base weights as they are, after `LoraConfig` and `LoraLayer`
# (peft/tuners/lora). The other ones (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change them.
_KEEP_BASE_WEIGHTS = (True, False, "gaussian", "eva", "orthogonal", "mica")
# Standard deviation of the perturbation, that of new weights in most models (`initializer_range`): large enough to
# change the output in 16 bits too, and small enough that nothing overflows.
_PERTURBATION = 0.02
_LARGEST_KL = 1e-6  # nats per token; an adapter that adds 0 to each layer gives 0 up to the kernels' rounding


def check_full_tuning(reference: str) -> None:
    """Refuse the trained model as its own reference in full fine-tuning.

    Raises:
        ConfigError: With the remedy.
    """
    if reference in ("base", "initial"):
        raise ConfigError(
            f"reference={reference!r} needs an adapter to switch off or copy, and full fine-tuning has none.",
            "name the reference model with --reference PATH (usually the value of --model_name_or_path), or train "
            "an adapter (--use_peft true).",
        )


def check_quantised(*, quantised: bool, adapted: bool, dora_in_8_bits_on_cpu: bool = False) -> None:
    """Refuse full fine-tuning of quantised weights, and adapters over them that cannot be computed.

    Raises:
        ConfigError: With the remedy.
    """
    if quantised and not adapted:
        raise ConfigError(
            "the model's weights are quantised and there is no adapter: steps of training are far smaller than the "
            "spacing of 4 or 8 bits, so quantised weights themselves cannot be trained.",
            "train an adapter over them (--use_peft true), or load the model without load_in_4bit and load_in_8bit.",
        )
    if dora_in_8_bits_on_cpu:
        raise ConfigError(
            "use_dora reads the values of the weights, after which bitsandbytes cannot multiply by its 8-bit ones on a "
            "CPU any more (seen with 0.50.2).",
            "use load_in_4bit, or leave use_dora out.",
        )


def check_kind(peft_config: Any) -> None:
    """Refuse kinds of adapters whose training needs more than a loss, whatever they are compared with.

    Raises:
        ConfigError: With the remedy.
    """
    kind = getattr(peft_config.peft_type, "value", peft_config.peft_type)
    if kind == "POLY":
        raise ConfigError(
            "peft_type=POLY mixes its skills by the task of each row (task_ids), and rows here name no task.",
            "use LoRA, one adapter a task.",
        )
    if kind == "ADALORA":
        raise ConfigError(
            "AdaLoRA adds a loss of its own to the model's, and gives out its ranks in a call after each step "
            "(update_and_allocate); neither happens here, so all ranks would stay and nothing would keep its factors "
            "orthogonal.",
            "use LoRA (lora_r, use_rslora, use_dora).",
        )
    if getattr(peft_config, "alora_invocation_tokens", None) is not None:
        raise ConfigError(
            "alora_invocation_tokens switches the adapter on from these tokens onwards, which PEFT finds in a call of "
            "its own wrapper; the passes here call the model inside it, and would have it on at every token.",
            "leave alora_invocation_tokens out.",
        )


def check_peft(peft_config: Any, reference: str) -> None:
    """Refuse adapters that the reference or the objective cannot handle, by their configuration alone.

    Raises:
        ConfigError: With the remedy.
    """
    if getattr(peft_config, "is_prompt_learning", False) or getattr(peft_config, "is_adaption_prompt", False):
        raise ConfigError(
            f"peft_type={peft_config.peft_type.value} adds virtual tokens instead of changing layers, so positions of "
            "base and tuned model do not match.",
            "use LoRA (or another PEFT method that changes layers).",
        )
    check_kind(peft_config)
    targets = getattr(peft_config, "target_modules", None) or ()
    # A pattern that merely mentions the head may exclude it; TRL refuses one that hits it.
    if "lm_head" in ([targets] if isinstance(targets, str) else targets):
        raise ConfigError(
            "target_modules names 'lm_head': the loss projects hidden states with lm_head.weight itself, so an adapter "
            "on it would never be trained.",
            "remove 'lm_head' from target_modules; to train the head, name it in modules_to_save.",
        )
    if reference != "base":
        return
    start = getattr(peft_config, "init_lora_weights", True)
    if start not in _KEEP_BASE_WEIGHTS:
        raise ConfigError(
            f"init_lora_weights={start!r} rewrites the base weights, so switching the adapter off does not give back "
            "the original model, and alignment would hold the model to the wrong distribution.",
            "use reference='initial' (a frozen copy of the starting adapter), or init_lora_weights=True.",
        )
    if getattr(peft_config, "layer_replication", None):
        raise ConfigError(
            "layer_replication builds a deeper model out of the base's layers, and it stays deeper when the adapter is "
            "off.",
            "use reference='initial', or leave layer_replication out.",
        )
    bias = getattr(peft_config, "bias", "none")
    if bias != "none":
        raise ConfigError(
            f"bias={bias!r} trains the base model's own biases, which stay trained when the adapter is off.",
            "use bias='none', or reference='initial'.",
        )


def check_reference(model: nn.Module, reference: Reference, *, fresh: bool = True) -> None:
    """Test the reference on a few tokens, with the adapter as it is and perturbed.

    Weights are restored bit for bit, and the random state is not touched.

    Args:
        model: Causal LM inside all wrappers.
        reference: Its reference.
        fresh: Whether the adapter is as training begins, not restored from a checkpoint already.

    Raises:
        ConfigError: If the reference changes with the adapter, the tuned model does not, or the adapter already
            changes the model before the first step.
    """
    # Without an adapter (full fine-tuning) nothing is switched, and without loaded weights nothing can be computed.
    if not switchable_layers(model) or any(p.is_meta for p in model.parameters()):
        return
    weights = [p for p in model.parameters() if p.requires_grad]
    input_ids = probe_tokens(model)
    if trained_tokens(model):  # they must be among the tokens, or nothing would change
        input_ids = torch.cat([input_ids, input_ids.new_tensor([trained_tokens(model)[:8]])], dim=1)
    tuned_before, reference_before = _tuned_and_reference(model, reference, input_ids)
    # Of weights that are split over ranks, each rank perturbs the part that it holds.
    original = [held(p).clone() for p in weights]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in weights:
            part = held(p)
            part.add_((torch.randn(part.shape, generator=generator) * _PERTURBATION).to(part))
            released(p)
        try:
            tuned_after, reference_after = _tuned_and_reference(model, reference, input_ids)
        finally:
            for p, value in zip(weights, original, strict=True):
                held(p).copy_(value)
                released(p)
    if torch.equal(tuned_before, tuned_after):
        raise ConfigError(
            "the trained weights do not change the model's output, so nothing would be learnt.",
            "check target_modules, and that the adapter is active and not disabled.",
        )
    if not torch.equal(reference_before, reference_after):
        raise ConfigError(
            f"the reference={reference.name!r} moves when the trained weights do, so it is not the model as it was: "
            "probably weights outside the adapter are being trained.",
            "use reference='initial', or leave modules_to_save and bias at their defaults.",
        )
    if reference.name == "base" and fresh:
        kl = BaseToTuned()(tuned_before, reference_before, None, gradient=False).value_N.mean().item()
        if kl > _largest_kl(model, input_ids.device):
            raise ConfigError(
                f"the adapter already changes the model (KL {kl:.3g} nats a token before the first step), so with it "
                "off the model is not the one that training starts from: either training goes on from an adapter, or "
                "init_lora_weights=False started one at random.",
                "use reference='initial' to align with the model that training starts from, merge the adapter into its "
                "base first (or set init_lora_weights=True for a new one), or set check_reference=false to align with "
                "the model without any adapter.",
            )


def _largest_kl(model: nn.Module, device: torch.device) -> float:
    """``4 L u²``, and at least 1e-6: the KL in nats a token that rounding can give an adapter that changes nothing.

    An adapter that adds 0 is exact in every number format. DoRA and others compute the output of each of L layers anew,
    with a relative error of about u, half the format's spacing at 1. Measured is 1.1 L u² (`benchmarks/quantised.py`).
    """
    if not computes_anew(model, whole):
        return _LARGEST_KL
    layers = [layer for layer in switchable_layers(model) if next(layer.parameters(), None) is not None]
    formats = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if torch.is_autocast_enabled(device.type):
        formats.add(torch.get_autocast_dtype(device.type))
    rounding = max(torch.finfo(each).eps for each in formats) / 2
    return max(_LARGEST_KL, 4 * len(layers) * rounding**2)


def _tuned_and_reference(model: nn.Module, reference: Reference, input_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of the tuned and of the reference model, T × V each, in float32."""
    with torch.no_grad(), uncached_autocast(), evaluating(model):
        tuned_hidden, head = final_hidden(model, input_ids), head_of(model)
        with gathered_head(head.weight_VH, head.bias_V):
            tuned = head.logits(tuned_hidden.to(head.weight_VH.dtype)).float()
        with reference.serving(model) as reference_model:
            hidden = final_hidden(reference_model, input_ids)
        # Read anew: a reference may give up weights that the tuned pass had gathered.
        other = reference.head(model) or head_of(model)
        with gathered_head(other.weight_VH, other.bias_V):
            return tuned, other.logits(hidden.to(other.weight_VH.dtype)).float()
