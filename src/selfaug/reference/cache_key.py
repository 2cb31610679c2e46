"""The key of a reference cache: everything that its hidden states depend on; and the models that have none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from selfaug.common.errors import ConfigError
from selfaug.common.fingerprint import text_hash, tokenizer_hash
from selfaug.model.libraries import switchable_layers
from selfaug.model.parts import depends_on_what_follows, head_layer
from selfaug.model.sharding import whole
from selfaug.reference.cache_files import UNKNOWN, CacheKey

__all__ = ["base_weights", "cache_key", "checksum", "refuse_uncacheable"]

# Elements of a weight that a checksum widens to int64 at once.
_CHUNK = 2**22


def base_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the base's weights, with or without an adapter, by their names without one."""
    inside = [(n, p) for layer in switchable_layers(model) for n, p in layer.named_parameters()]
    added = {id(p) for n, p in inside if "base_layer." not in n and "original_module." not in n}
    weights: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) not in added:
            # Adapters on several weights of one module are nested.
            plain = ".".join(part for part in name.split(".") if part not in ("base_layer", "original_module"))
            weights[plain] = parameter
    return weights


def checksum(weights: Mapping[str, Tensor]) -> str:
    """``sum_i bits_i · (2i + 1) mod 2^64`` of each weight, hashed with its name, dtype and shape.

    Each factor is odd, so a change of any single element changes the checksum. It is summed on the device of the
    weight, so a model on a GPU takes moments. It is not secure against collisions made on purpose. Weights that are
    split over ranks are gathered one by one.
    """
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    parts: list[Any] = []
    for name in sorted(weights):
        weight = whole(weights[name])
        bits = weight.contiguous().reshape(-1).view(integers[weight.element_size()])
        total = torch.zeros((), dtype=torch.int64, device=weight.device)
        for start in range(0, bits.numel(), _CHUNK):
            part = bits[start : start + _CHUNK].to(torch.int64)
            total += (part * (torch.arange(start, start + len(part), device=part.device) * 2 + 1)).sum()
        parts.append([name, str(weight.dtype), list(weight.shape), int(total)])
    return str(text_hash(json.dumps(parts)))


def cache_key(model: nn.Module, tokenizer: Any, *, align_boundary: bool, precision: str) -> CacheKey:
    """Return the key of a cache of this model's hidden states."""
    template = tokenizer.chat_template
    config: Any = model.config
    return CacheKey(
        tokenizer=tokenizer_hash(tokenizer),
        chat_template=text_hash(template if isinstance(template, str) or template is None else json.dumps(template)),
        weights=UNKNOWN if any(p.is_meta for p in model.parameters()) else checksum(base_weights(model)),
        config=str(text_hash(json.dumps(_output_settings(config.to_dict()), sort_keys=True, default=str))),
        align_boundary=align_boundary,
        precision=precision,
    )


def _output_settings(config: Any) -> Any:
    """Return a configuration without notes, options of a single call, and token ids."""
    if not isinstance(config, dict):
        return config
    notes = {"transformers_version", "architectures", "dtype", "torch_dtype", "use_cache", "id2label", "label2id"}
    return {
        name: _output_settings(value)
        for name, value in config.items()
        if name not in notes and not name.startswith(("_", "output_", "return_")) and not name.endswith("_token_id")
    }


def refuse_uncacheable(model: nn.Module) -> None:
    """Refuse models whose hidden states cannot be cached.

    Raises:
        ConfigError: With the remedy.
    """
    if depends_on_what_follows(model.config):
        raise ConfigError(
            f"reference_cache cannot serve {type(model).__name__} as it is configured: its hidden states change with "
            "the rest of the batch (dynamic or longrope positions, or attention to what follows), which no file knows.",
            "leave --reference_cache out.",
        )
    embeddings: Any = model.get_output_embeddings()  # type: ignore[operator]
    trained = hasattr(embeddings, "modules_to_save") or any(p.requires_grad for p in head_layer(model).parameters())
    if trained:
        raise ConfigError(
            "reference_cache stores the base's hidden states, which give its distributions only with its own head, but "
            "this run trains the head (lm_head, or the embedding that it is tied to).",
            "train an adapter without lm_head in modules_to_save, set --freeze_head true in full fine-tuning, or leave "
            "--reference_cache out.",
        )
