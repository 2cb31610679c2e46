"""Every private or fragile name of trl, transformers and peft that the package depends on.

`tests/unit/test_trl_names.py` fails when one of them changes, and names the file that depends on it.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from selfaug.common.errors import ConfigError

__all__ = [
    "LoraPair", "computes_anew", "corda_parts", "gathered_head", "is_zero_parameter", "keep_nothing_gathered",
    "loading_options", "lora_pairs", "osf_settings", "pissa_parts", "reduce_intruders", "release_zero_parameter",
    "saving_whole", "spare_refused_modules", "switchable_layers", "trained_tokens",
]  # fmt: skip


def switchable_layers(model: nn.Module) -> list[Any]:
    """Return the PEFT modules that output what their base layer does while their ``_disable_adapters`` flag is set.

    These are LoRA and similar layers (`BaseTunerLayer`) and the wrappers of `modules_to_save` and
    `trainable_token_indices`.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return [m for m in model.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]


def trained_tokens(model: nn.Module) -> list[int]:
    """Return the ids of the tokens whose embeddings are trained one by one (``trainable_token_indices``)."""
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    layers = [layer for layer in model.modules() if isinstance(layer, TrainableTokensLayer)]
    return sorted({int(i) for layer in layers for name in layer.active_adapters for i in layer.token_indices[name]})


def computes_anew(model: nn.Module, whole: Callable[[Tensor], Tensor]) -> bool:
    """Whether adapters that change nothing yet give their layers' outputs to rounding only.

    A LoRA whose product B·A is 0 adds exactly 0. DoRA, and kinds of adapters other than LoRA, compute the output anew.
    Where a product is not 0 the adapter does change something, and the answer is no.

    Args:
        model: Model with active adapters.
        whole: Function that returns a whole weight where ranks hold parts of it.
    """
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    anew = False
    for layer in model.modules():
        if not isinstance(layer, LoraLayer):
            anew = anew or isinstance(layer, BaseTunerLayer)
            continue
        for name in layer.active_adapters:
            for down, up in ((layer.lora_A, layer.lora_B), (layer.lora_embedding_A, layer.lora_embedding_B)):
                pair = [getattr(part[name], "weight", part[name]) for part in (down, up)] if name in down else []
                if pair and all(bool(whole(matrix).any()) for matrix in pair):
                    return False
            anew = anew or name in layer.lora_variant
    return anew


class LoraPair(NamedTuple):
    """The parameters of a LoRA layer.

    Args:
        A: Down projection, R × I.
        B: Up projection, O × R.
        scale: Factor s on B A.
        W: Pretrained weight, O × I; ``None`` for an embedding.
        layer: The layer itself.
        name: Name of its adapter.
    """

    A: Tensor
    B: Tensor
    scale: float
    W: Tensor | None
    layer: nn.Module
    name: str


def lora_pairs(model: nn.Module) -> list[LoraPair]:
    """Return the matrices of the active adapters, layer by layer, for linear layers and embeddings."""
    from peft.tuners.lora import LoraLayer

    pairs = []
    for layer in model.modules():
        if not isinstance(layer, LoraLayer):
            continue
        for name in layer.active_adapters:
            if name in layer.lora_A:
                weight = layer.get_base_layer().weight
                weight_OI = weight.T if getattr(layer, "fan_in_fan_out", False) else weight
                A, B = layer.lora_A[name].weight, layer.lora_B[name].weight
                pairs.append(LoraPair(A, B, layer.scaling[name], weight_OI, layer, name))
            elif name in layer.lora_embedding_A:
                A, B = layer.lora_embedding_A[name], layer.lora_embedding_B[name]
                pairs.append(LoraPair(A, B, layer.scaling[name], None, layer, name))
    return pairs


def _part_of(pair: LoraPair, kind: str) -> tuple[Tensor, Tensor]:
    """Return A and B as PEFT's initialisation sets them; adapter and weight are restored."""
    layer: Any = pair.layer
    weight = layer.get_base_layer().weight
    before = [t.data.clone() for t in (weight, pair.A, pair.B)]
    getattr(layer, f"{kind}_init")(pair.name, kind)
    parts = layer.lora_A[pair.name].weight.data, layer.lora_B[pair.name].weight.data
    for tensor, value in zip(
        (weight, layer.lora_A[pair.name].weight, layer.lora_B[pair.name].weight), before, strict=True
    ):
        tensor.data = value
    return parts


def pissa_parts(pair: LoraPair) -> tuple[Tensor, Tensor]:
    """Return A₀ and B₀ of a layer as PEFT's PiSSA initialises them."""
    return _part_of(pair, "pissa")


def corda_parts(
    model: nn.Module, peft_config: Any, pairs: Sequence[LoraPair], run_model: Callable[[], None]
) -> list[tuple[Tensor, Tensor]]:
    """Return A₀ and B₀ of each layer as PEFT's CorDA initialises them in its knowledge-preserving mode.

    PEFT looks for linear layers under the names that they have without an adapter, so it receives a model that has them
    under these names.

    Args:
        model: Causal LM inside all wrappers.
        peft_config: Configuration of the adapter; changed in place.
        pairs: LoRA layers of the model.
        run_model: Function that runs the model on texts, one at a time.
    """
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    layers = {id(pair.layer): pair for pair in pairs}
    bare = nn.Module()
    for name, module in model.named_modules():
        if id(module) in layers:
            *path, last = name.split(".")
            parent = bare
            for part in path:
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            parent.add_module(last, module.get_base_layer())
    peft_config.corda_config = CordaConfig(corda_method="kpm")
    preprocess_corda(bare, peft_config, run_model)
    for pair in pairs:  # PEFT leaves the layers in evaluation mode
        pair.layer.get_base_layer().train(pair.layer.training)  # type: ignore[operator]
    return [_part_of(pair, "corda") for pair in pairs]


def reduce_intruders(model: nn.Module, *, top: int, cosine: float, scale: float) -> None:
    """Apply PEFT's `reduce_intruder_dimension` to the active adapter, in place.

    PEFT writes the result into a second adapter, which here replaces the values of the first and is removed.

    Args:
        model: PEFT's wrapper of the causal LM.
        top: Number of the strongest directions of W + ΔW that are looked at.
        cosine: Cosine with the pretrained directions below which one is new.
        scale: Factor on new directions. (PEFT's own text has it the other way round.)
    """
    from peft.tuners.lora.intruders import reduce_intruder_dimension

    wrapper: Any = model
    name, reduced = wrapper.active_adapter, "selfaug_reduced"
    reduce_intruder_dimension(
        wrapper, name, reduced, top_k=top, threshold_epsilon=cosine, mitigation_lambda=scale, logging_sink=None
    )
    new = lora_pairs(wrapper)
    wrapper.set_adapter(name)
    for pair, other in zip(lora_pairs(wrapper), new, strict=True):
        pair.A.data.copy_(other.A.data)
        pair.B.data.copy_(other.B.data)
    wrapper.delete_adapter(reduced)


def osf_settings(given: Any, kept: float) -> Any:
    """Return PEFT's OSF settings for the modules of a LoRA's settings.

    Args:
        given: Settings of the LoRA.
        kept: Share of each weight's singular directions that stay.

    Raises:
        ConfigError: If the LoRA chooses its layers in a way that OSF has no setting for.
    """
    from peft import OSFConfig

    for name, usual in (("exclude_modules", None), ("layers_to_transform", None), ("init_lora_weights", True)):
        if getattr(given, name) not in (usual, []):
            raise ConfigError(
                f"{name}={getattr(given, name)!r} has no counterpart in PEFT's OSF, so it would have no effect.",
                f"leave {name} out (target_modules names the layers), or choose another method.",
            )
    return OSFConfig(effective_rank=kept, target_modules=given.target_modules, task_type=given.task_type)


def gathered_head(*weights: Any, write: bool = False) -> Any:
    """Return a context in which weights sharded by DeepSpeed ZeRO-3 are whole; elsewhere it does nothing.

    Args:
        weights: Weights, such as those of a head; ``None`` is left out.
        write: Whether values written inside are kept; those of the first rank count.
    """
    sharded = [p for p in weights if is_zero_parameter(p)]
    if not sharded:
        return contextlib.nullcontext()
    import deepspeed
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    # A tied embedding may be gathered already; only the model's own hooks may partition it again.
    if not write:
        sharded = [p for p in sharded if p.ds_status == ZeroParamStatus.NOT_AVAILABLE]
    if not sharded:
        return contextlib.nullcontext()
    return deepspeed.zero.GatheredParameters(sharded, modifier_rank=0 if write else None)


def is_zero_parameter(weight: Any) -> bool:
    """Whether DeepSpeed ZeRO-3 shards a weight."""
    return hasattr(weight, "ds_status") and getattr(weight, "ds_tensor", None) is not None


def release_zero_parameter(weight: Any) -> None:
    """Forget the gathered copy of a ZeRO-3 weight, if there is one, so that its next use gathers it from its parts."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    if weight.ds_status == ZeroParamStatus.INFLIGHT:
        raise RuntimeError(f"{weight.ds_summary()} is being gathered while it is exchanged: prefetching is not off")
    if weight.ds_status == ZeroParamStatus.AVAILABLE:
        weight.partition()


def keep_nothing_gathered(accelerator: Any) -> None:
    """Make ZeRO-3 gather each weight when it is used and give it up afterwards, also between two passes of one step.

    Called before DeepSpeed starts. A weight that was prefetched, or kept for its next use, would serve the training
    pass with the values of a reference pass that exchanges weights.
    """
    zero = accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
    zero["stage3_prefetch_bucket_size"] = zero["stage3_max_reuse_distance"] = 0


@contextlib.contextmanager
def saving_whole(trainer: Any) -> Iterator[None]:
    """Make `Trainer.save_model` gather the weights of a sharded model, whatever its configuration asks for.

    transformers writes no weights for FSDP's ``SHARDED_STATE_DICT``, nor for ZeRO-3 without
    ``stage3_gather_16bit_weights_on_model_save``.
    """
    owner: Any = None
    name = ""
    value: Any = None
    if trainer.is_fsdp_enabled:
        from torch.distributed.fsdp import StateDictType

        owner, name = trainer.accelerator.state.fsdp_plugin, "state_dict_type"
        value = StateDictType.FULL_STATE_DICT
    elif trainer.is_deepspeed_enabled and trainer.deepspeed is not None:
        owner, name = trainer.deepspeed._config.zero_config, "gather_16bit_weights_on_model_save"
        value = True
    asked = getattr(owner, name, None)
    try:
        if owner is not None:
            setattr(owner, name, value)
        yield
    finally:
        if owner is not None:
            setattr(owner, name, asked)


# Copies of local variables of `_check_lora_target_modules_mamba` in peft.tuners.tuners_utils.
_MAMBA_TYPES = frozenset({"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"})
_REFUSED_IN_MAMBA = ["out_proj", "conv1d"]


def spare_refused_modules(peft_config: Any, model_type: str) -> None:
    """Exclude the modules of state-space models that PEFT refuses although `all-linear` includes them.

    To be removed when PEFT leaves them out of `all-linear` itself.
    """
    targets = getattr(peft_config, "target_modules", None)
    if model_type in _MAMBA_TYPES and targets in ("all-linear", ["all-linear"]) and not peft_config.exclude_modules:
        peft_config.exclude_modules = list(_REFUSED_IN_MAMBA)


def loading_options() -> frozenset[str]:
    """Return the arguments that ``from_pretrained`` takes besides the fields of a model's configuration.

    They are read from its signature and its source, since transformers has no list of those that it pops from
    ``kwargs``.
    """
    from transformers import PreTrainedModel

    source = inspect.getsource(PreTrainedModel.from_pretrained)
    taken = re.findall(r"kwargs\.(?:pop|get)\(\s*\"(\w+)\"", source)
    ignored = re.findall(r'"(\w+)"', source.partition("Not used anymore")[2].partition("]")[0])
    return frozenset([*inspect.signature(PreTrainedModel.from_pretrained).parameters, *taken, *ignored])
