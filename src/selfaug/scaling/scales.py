"""Scaled updates of a LoRA: ``W + f_m · scaling · B A`` in each module m, in memory and on disk.

The base's weights are not touched and nothing is trained. On disk the factor is in B, and in the bias of B's layer
where there is one, so that every loader gets the same update.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.common.errors import ConfigError
from selfaug.common.store import key_of
from selfaug.data.prompt_files import SETTINGS, TEMPLATE
from selfaug.model.base import BASE_FILE
from selfaug.model.libraries import lora_pairs, reduce_intruders
from selfaug.run.fit import peft_settings
from selfaug.run.folder import ADAPTER_CONFIG
from selfaug.run.foreign import ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor, nn

    from selfaug.run.models import Origin

__all__ = ["Scales", "changed", "check_lora", "check_scalable", "intruders_matter", "modules_of", "write_adapter"]

# The directions that count as intruders, as the method `intruder` takes them by default.
_TOP, _COSINE = 10, 0.5
_PREFIX = "base_model.model."
_BESIDE = (
    ADAPTER_CONFIG, BASE_FILE, SETTINGS, TEMPLATE, "tokenizer*", "special_tokens_map.json", "added_tokens.json",
    "vocab.*", "merges.txt", "chat_template.jinja", "selfaug_*.jinja",
)  # fmt: skip


@dataclass(frozen=True)
class Scales:
    """Factors on the update of each module.

    Args:
        label: Name in tables.
        factors: Factor of each module with a LoRA, by the module's name in the base model.
        intruders: Factor on the strong singular directions that the base's weights do not have, applied before the
            others; 1 leaves the update as it is.
    """

    label: str
    factors: Mapping[str, float]
    intruders: float = 1.0

    @property
    def uniform(self) -> float | None:
        """The factor of all modules, or ``None`` where they differ."""
        values = set(self.factors.values())
        return values.pop() if len(values) == 1 else None

    @property
    def mean(self) -> float:
        """Mean factor over the modules."""
        return sum(self.factors.values()) / len(self.factors)

    def weights_hash(self, adapter: str) -> str:
        """Return what decides the scaled weights, from the hash of the adapter's own."""
        if self.uniform == 1 and self.intruders == 1:
            return adapter
        intruders = None if self.intruders == 1 else [self.intruders, _TOP, _COSINE]
        return key_of({"adapter": adapter, "factors": dict(self.factors), "intruders": intruders})


def check_scalable(origin: Origin) -> None:
    """Refuse what is not a plain LoRA over a base that is the model with the adapter off; nothing is loaded.

    Raises:
        ConfigError: With the reason.
    """
    name = str(origin.final)
    if not origin.adapter:
        raise ConfigError(
            f"{name} holds a whole model, and only the update of a LoRA can be scaled without training",
            "interpolate the weights of base and tuned model with a tool such as mergekit.",
        )
    check_lora(peft_settings(origin.final), f"adapter {name!r}")
    origin.require_plain_head()
    if not origin.switchable:
        raise ConfigError(
            f"adapter {name!r} rewrote or trained weights of its base (init_lora_weights, bias or layer_replication in "
            f"its {ADAPTER_CONFIG}), so no factor on its update leads back to its base",
            "convert it to a plain LoRA first (PEFT: `path_initial_model_for_weight_conversion`), or train anew.",
        )


def check_lora(config: PeftConfig, name: str) -> None:
    """Refuse settings of adapters whose update cannot be scaled to 0; what rewrites the base is not looked at.

    Args:
        config: Settings of the adapter.
        name: What the message calls it.

    Raises:
        ConfigError: With the reason.
    """
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA":
        raise ConfigError(
            f"{name} is of peft_type {kind}, and a factor on it is no factor on an update B·A",
            "pass a LoRA.",
        )
    reasons = {
        "use_dora": "DoRA also trains the length of each weight's columns, which stays when its B·A is scaled to 0",
        "modules_to_save": "these modules are trained whole, and stay trained when the LoRA is scaled to 0",
        "trainable_token_indices": "these embeddings are trained whole, and stay trained when the LoRA is scaled to 0",
        "target_parameters": "its LoRA is on parameters, not on modules, whose factors PEFT cannot set",
        "use_qalora": "it pools the inputs, so its update is no B·A",
        "use_bdlora": "its update is block-diagonal, and not one B·A",
        "kasa_config": "its update is no B·A", "velora_config": "its update is no B·A",
        "monteclora_config": "its update is drawn anew in each pass",
    }  # fmt: skip
    for setting, why in reasons.items():
        if getattr(config, setting, None):
            raise ConfigError(
                f"{name} has {setting}: {why}, so no factor leads back to its base",
                "train with a plain LoRA, or hold it nearer its base while training (`selfaug train`).",
            )


def modules_of(adapter: Path) -> list[str]:
    """Return the names, in the base model, of the modules with a LoRA, layer by layer; only the file's head is read."""
    from safetensors import safe_open

    with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as file:
        names = {name.removeprefix(_PREFIX).partition(".lora_")[0] for name in file.keys()}  # noqa: SIM118
    return sorted(
        names, key=lambda name: [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
    )


def _named(model: nn.Module) -> dict[str, Any]:
    names = {id(module): name.removeprefix(_PREFIX) for name, module in model.named_modules()}
    return {names[id(pair.layer)]: pair for pair in lora_pairs(model)}


@contextmanager
def changed(peft: nn.Module, scales: Scales) -> Iterator[None]:
    """Let the active adapter act with these factors inside the block; every value is restored to the bit.

    Args:
        peft: PEFT's wrapper of the tuned model, whose factors are its own.
        scales: Factors of its modules.
    """
    pairs = _named(peft)
    assert pairs.keys() == scales.factors.keys(), "factors of another adapter"
    weights = [(tensor, tensor.data.clone()) for pair in pairs.values() for tensor in (pair.A, pair.B)] * (
        scales.intruders != 1
    )
    try:
        if weights:
            reduce_intruders(peft, top=_TOP, cosine=_COSINE, scale=scales.intruders)
        for module, pair in pairs.items():
            pair.layer.scaling[pair.name] = pair.scale * scales.factors[module]
        yield
    finally:
        for pair in pairs.values():
            pair.layer.scaling[pair.name] = pair.scale
        for tensor, own in weights:
            tensor.data.copy_(own)


def intruders_matter(peft: nn.Module, scale: float) -> bool:
    """Return whether the update has strong directions that the base's weights lack, so that shrinking them changes it.

    It is told by the product of each update with one random vector, beyond a ten-thousandth of it.
    """
    import torch

    def products() -> Iterator[Tensor]:
        for pair in lora_pairs(peft):
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(pair.A.shape[-1], generator=generator).to(pair.A)
            yield pair.B @ (pair.A @ x) if pair.W is not None else pair.B.sum(1)

    factors = dict.fromkeys(_named(peft), 1.0)
    with torch.no_grad():
        own = list(products())
        with changed(peft, Scales("", factors, scale)):
            return any(float((a - b).norm()) > 1e-4 * float(b.norm()) for a, b in zip(products(), own, strict=True))


def write_adapter(model: nn.Module, adapter: Path, scales: Scales, out: Path) -> None:
    """Write the scaled adapter: the files of ``adapter`` that loaders need, with the factors in the weights of B.

    B is written in float32 at least where it has another factor than 1: a narrower format could round the product.

    Args:
        model: Tuned model with this adapter, changed by ``scales``.
        adapter: Folder of the adapter.
        scales: Factors of its modules.
        out: Folder that is written; it exists.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as file:
        metadata = file.metadata() or {"format": "pt"}
        weights: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if scales.intruders != 1:
        for module, pair in _named(model).items():
            for side, matrix in (("A", pair.A), ("B", pair.B)):
                assert f"{_PREFIX}{module}.lora_{side}.weight" in weights, f"{module} is no linear layer"
                weights[f"{_PREFIX}{module}.lora_{side}.weight"] = matrix.detach().cpu().clone()
    scaled = 0
    for name, value in weights.items():
        module, _, rest = name.removeprefix(_PREFIX).partition(".lora_")
        if not rest.startswith(("B", "embedding_B")):
            continue
        factor = scales.factors[module]
        if factor != 1:
            weights[name] = value.to(torch.promote_types(value.dtype, torch.float32)) * factor
        scaled += rest != "B.bias"
    assert scaled == len(scales.factors), "a module's B was not found in the adapter's file"
    save_file({name: value.contiguous() for name, value in weights.items()}, out / ADAPTER_WEIGHTS, metadata)
    for path in sorted({path for pattern in _BESIDE for path in adapter.glob(pattern) if path.is_file()}):
        shutil.copyfile(path, out / path.name)
