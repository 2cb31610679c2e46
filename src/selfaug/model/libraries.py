"""Every private or fragile name of trl, transformers and peft that we lean on, in one place.

`tests/unit/test_trl_names.py` fails when one of them moves, and says which of our files then needs a look.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

__all__ = [
    "LoraPair", "corda_parts", "gathered_head", "loading_options", "lora_pairs", "pissa_parts", "spare_refused_modules",
    "switchable_layers",
]  # fmt: skip


def switchable_layers(model: nn.Module) -> list[Any]:
    """Modules of PEFT whose ``_disable_adapters`` flag, when true, makes them give their base layer's output.

    LoRA and its kin (`BaseTunerLayer`), and the wrappers of `modules_to_save` and `trainable_token_indices`.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return [m for m in model.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]


class LoraPair(NamedTuple):
    """A LoRA layer's A (R × I), B (O × R), scale s, pretrained weight W (O × I; ``None`` of an embedding).

    And the layer itself, with the name of its adapter.
    """

    A: Tensor
    B: Tensor
    scale: float
    W: Tensor | None
    layer: nn.Module
    name: str


def lora_pairs(model: nn.Module) -> list[LoraPair]:
    """The active adapter's matrices, layer by layer; linear layers and embeddings."""
    from peft.tuners.lora import LoraLayer

    pairs = []
    for layer in model.modules():
        if not isinstance(layer, LoraLayer):
            continue
        for name in layer.active_adapters:
            if name in layer.lora_A:
                weight = layer.get_base_layer().weight
                turned = weight.T if getattr(layer, "fan_in_fan_out", False) else weight
                pairs.append(
                    LoraPair(
                        layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name], turned, layer, name
                    )
                )
            elif name in layer.lora_embedding_A:
                A, B = layer.lora_embedding_A[name], layer.lora_embedding_B[name]
                pairs.append(LoraPair(A, B, layer.scaling[name], None, layer, name))
    return pairs


def _part_of(pair: LoraPair, kind: str) -> tuple[Tensor, Tensor]:
    """What PEFT's initialisation sets the adapter to; adapter and weight are afterwards as before."""
    layer: Any = pair.layer
    weight = layer.get_base_layer().weight
    kept = [t.data.clone() for t in (weight, pair.A, pair.B)]
    getattr(layer, f"{kind}_init")(pair.name, kind)
    found = layer.lora_A[pair.name].weight.data, layer.lora_B[pair.name].weight.data
    for tensor, value in zip(
        (weight, layer.lora_A[pair.name].weight, layer.lora_B[pair.name].weight), kept, strict=True
    ):
        tensor.data = value
    return found


def pissa_parts(pair: LoraPair) -> tuple[Tensor, Tensor]:
    """A₀ and B₀ of a layer as PEFT's PiSSA makes them."""
    return _part_of(pair, "pissa")


def corda_parts(
    model: nn.Module, peft_config: Any, pairs: Sequence[LoraPair], run_model: Callable[[], None]
) -> list[tuple[Tensor, Tensor]]:
    """A₀ and B₀ of each layer as PEFT's CorDA makes them in its knowledge-preserving mode.

    PEFT looks for linear layers under the names that they have without an adapter, so it is given a model that holds
    them under these.

    Args:
        model: The causal LM inside all wrappers.
        peft_config: Of its adapter; changed.
        pairs: Of its layers.
        run_model: Runs it on texts, one at a time.
    """
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    layers = {id(pair.layer): pair for pair in pairs}
    bare = nn.Module()
    for name, module in model.named_modules():
        if id(module) in layers:
            *path, last = name.split(".")
            at = bare
            for step in path:
                if step not in at._modules:
                    at.add_module(step, nn.Module())
                at = at.get_submodule(step)
            at.add_module(last, module.get_base_layer())
    peft_config.corda_config = CordaConfig(corda_method="kpm")
    preprocess_corda(bare, peft_config, run_model)
    for pair in pairs:  # PEFT leaves its model in evaluation mode
        pair.layer.get_base_layer().train(pair.layer.training)  # type: ignore[operator]
    return [_part_of(pair, "corda") for pair in pairs]


def gathered_head(weight: Any, bias: Any) -> Any:
    """Context in which a head sharded by DeepSpeed ZeRO-3 is whole; does nothing elsewhere."""
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    if not is_deepspeed_zero3_enabled():
        return contextlib.nullcontext()
    import deepspeed
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    # A tied embedding is whole already, and must not be split again before the model's own hooks do.
    split = [p for p in (weight, bias) if getattr(p, "ds_status", None) == ZeroParamStatus.NOT_AVAILABLE]
    return deepspeed.zero.GatheredParameters(split) if split else contextlib.nullcontext()


# Of `_check_lora_target_modules_mamba` in peft.tuners.tuners_utils, where they are local.
_MAMBA_TYPES = frozenset({"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"})
_REFUSED_IN_MAMBA = ["out_proj", "conv1d"]


def spare_refused_modules(peft_config: Any, model_type: str) -> None:
    """Where `all-linear` would include modules that PEFT then refuses (state-space models), exclude them.

    Remove when PEFT leaves them out of `all-linear` itself.
    """
    targets = getattr(peft_config, "target_modules", None)
    if model_type in _MAMBA_TYPES and targets in ("all-linear", ["all-linear"]) and not peft_config.exclude_modules:
        peft_config.exclude_modules = list(_REFUSED_IN_MAMBA)


def loading_options() -> frozenset[str]:
    """What ``from_pretrained`` takes besides the fields of a model's configuration.

    Its named arguments, and what it takes out of the others; no list of these exists elsewhere.
    """
    from transformers import PreTrainedModel

    source = inspect.getsource(PreTrainedModel.from_pretrained)
    taken = re.findall(r"kwargs\.(?:pop|get)\(\s*\"(\w+)\"", source)
    ignored = re.findall(r'"(\w+)"', source.partition("Not used anymore")[2].partition("]")[0])
    return frozenset([*inspect.signature(PreTrainedModel.from_pretrained).parameters, *taken, *ignored])
