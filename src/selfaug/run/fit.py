"""Checks of an adapter against its base: of its kind, of its shapes before weights are loaded, and of its switch after.

PEFT itself loads what fits and is silent about the rest: weights of layers that the base does not have are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.common.errors import ConfigError
from selfaug.common.quiet import raised, unwarned
from selfaug.run.folder import ADAPTER_CONFIG

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = [
    "check_fit", "check_kind", "check_switch", "first_words", "fitting", "load_adapter", "peft_settings",
    "probed",
]  # fmt: skip

_MISSING = "Found missing adapter keys"
# What PEFT and torch say of operations that the meta device lacks; the adapter is then checked as it is loaded.
_OF_META = re.compile(r"\bmeta\b|no data|FakeTensor")
_MEASURE_OTHERWISE = (
    "where its library can fold it into its base, pass the folded model with --tuned_model; else measure "
    "it with lm_eval (--model_args peft=...), which runs PEFT's own forward."
)


def first_words(error: BaseException) -> str:
    """Return the beginning of an error's text on one line."""
    # The first line of an error of peft or torch is general; the second names the cause.
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return " ".join(lines[:2])[:400] if lines else type(error).__name__


@contextmanager
def fitting(folder: Path, base: str) -> Iterator[None]:
    """Turn the errors of loading an adapter into the user's."""
    from safetensors import SafetensorError

    try:
        yield
    except (RuntimeError, ValueError, LookupError, OSError, TypeError, SafetensorError, UserWarning) as error:
        raise ConfigError(
            f"the adapter in {folder} does not fit the base model {base}: {first_words(error)}",
            "it was trained on another base: name the right one, or restore the files.",
        ) from error


def peft_settings(folder: Path) -> PeftConfig:
    """Return the settings of an adapter as PEFT reads them.

    Raises:
        ConfigError: If its kind is not known to the installed PEFT, or the file is damaged.
    """
    from peft import PeftConfig

    try:
        return PeftConfig.from_pretrained(str(folder))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the {ADAPTER_CONFIG} of adapter {str(folder)!r} cannot be used: {first_words(error)}",
            "update peft (the kind of adapter may be newer), or restore the file.",
        ) from error


def check_kind(folder: Path) -> None:
    """Refuse adapters that do more than replace layers, so that layers switched off are not the whole story.

    Raises:
        ConfigError: With the remedy.
    """
    config = peft_settings(folder)
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if config.is_prompt_learning or config.is_adaption_prompt:
        why = "adds virtual tokens before the prompt instead of changing layers"
    elif kind in ("POLY", "XLORA", "SHADOW"):
        why = "chooses among its parts outside of the layers, by inputs that an evaluation does not have"
    elif getattr(config, "alora_invocation_tokens", None):
        kind, why = "aLoRA (alora_invocation_tokens)", "acts only after certain tokens, which are looked up outside"
    elif getattr(config, "arrow_config", None):
        kind, why = "Arrow (arrow_config)", "is a router over other adapters, which are not in its folder"
    else:
        return
    raise ConfigError(f"adapter {str(folder)!r} is of peft_type {kind}: it {why}", _MEASURE_OTHERWISE)


def load_adapter(model: PreTrainedModel, folder: Path, **options: Any) -> PeftModel:
    """Return a base model with the adapter of a folder, of which every weight has found its place.

    Raises:
        ValueError: If the adapter has weights that the base has no place for.
        UserWarning: If the adapter lacks weights that its settings ask for.
    """
    from peft import PeftModel

    with raised(_MISSING):
        peft = PeftModel.from_pretrained(model, str(folder), **options)
        # Only a second loading says which weights had no place.
        unexpected = peft.load_adapter(str(folder), "default", **_of_second(options)).unexpected_keys
    if unexpected:
        raise ValueError(f"{len(unexpected)} of its weights have no place there, such as {unexpected[0]}")
    return peft


def _of_second(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "config"}


def check_fit(folder: Path, base: str, revision: str, trust_remote_code: bool) -> bool:
    """Check names and shapes of an adapter's weights against its base, before the base's weights are loaded.

    The base is built on the meta device, where weights take neither time nor memory.

    Returns:
        Whether the output projection is still a matrix, from which logits can be formed block by block.

    Raises:
        ConfigError: If a weight has no place in the base, another shape there, or is missing.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from selfaug.model.parts import head_layer

    name = str(Path(base).expanduser()) if Path(base).expanduser().is_dir() else base
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    settings = peft_settings(folder)
    if isinstance(getattr(settings, "init_lora_weights", None), str):
        settings.init_lora_weights = True  # others compute with the base's weights, and all are overwritten
    try:
        with unwarned(".*"), fitting(folder, base):
            peft = load_adapter(model, folder, config=settings, low_cpu_mem_usage=True, torch_device="cpu")
    except ConfigError as error:
        if not _OF_META.search(error.message):
            raise
        return True
    try:
        head_layer(peft.get_base_model())
    except ConfigError:
        return False
    return True


def probed(model: PreTrainedModel) -> Tensor:
    """Return the logits of a few tokens spread over the vocabulary, T x V in float32."""
    import torch

    ids = torch.arange(1, 9) * 7919 % model.config.get_text_config().vocab_size
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids[None].to(model.device), use_cache=False).logits[0].float()
    return logits


def check_switch(peft: PeftModel, before: Tensor, name: str) -> None:
    """Check on a few tokens that the adapter switched off gives the base, and that its layers are all of it.

    Args:
        peft: Base model with its adapter.
        before: Logits of the base before the adapter was loaded, from :func:`probed`.
        name: Name of the adapter, for messages.

    Raises:
        ConfigError: If not.
    """
    from selfaug.model.switch import adapters_off

    model = peft.get_base_model()
    tuned, whole = probed(model), probed(peft)
    with adapters_off(model):
        off = probed(model)
    # The same operations run on the same weights; only a kernel chosen anew may round otherwise.
    tolerance = (0.02 if model.dtype.itemsize == 2 else 1e-4) * float(before.abs().max())
    for found, wanted, what in (
        (off, before, "with the adapter switched off the model is not its base"),
        (tuned, whole, "the adapter is more than its layers"),
    ):
        distance = float((found - wanted).abs().max())
        if distance > tolerance:
            raise ConfigError(f"adapter {name!r}: {what} (logits differ by {distance:.3g})", _MEASURE_OTHERWISE)
