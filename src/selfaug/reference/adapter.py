"""The references that are the trained model itself: with its adapter off (`base`), or as training began (`initial`)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from selfaug.common.errors import ConfigError
from selfaug.model.libraries import switchable_layers
from selfaug.model.parts import head_layer, head_of
from selfaug.model.switch import adapters_off, evaluating, uncached_autocast
from selfaug.objective.head import LMHead

__all__ = ["BaseReference", "InitialReference", "digest"]

# Elements of a weight that enter a digest: enough to tell two models apart, cheap at 70B parameters.
_DIGEST_SAMPLE = 4096


def digest(weights: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes, dtypes and an even sample of up to 4,096 elements of each weight."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        flat = weights[name].detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // _DIGEST_SAMPLE)].contiguous().cpu()
        sha.update(f"{name} {tuple(weights[name].shape)} {sample.dtype}".encode())
        sha.update(sample.view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


class BaseReference:
    """The base model: the trained model with its adapter off."""

    name = "base"

    @contextmanager
    def serving(self, model: nn.Module) -> Iterator[nn.Module]:
        """Inside, the yielded model's body gives the reference's hidden states, without gradient or dropout."""
        with torch.no_grad(), uncached_autocast(), adapters_off(model), evaluating(model):
            yield model

    def head(self, model: nn.Module) -> LMHead | None:
        """The reference's own head; ``None`` where it shares the tuned model's."""
        # Not by comparing weights: sharded ones are gathered anew each time.
        copied = getattr(model.get_output_embeddings(), "modules_to_save", None)  # type: ignore[operator]
        return None if copied is None else head_of(model, reference=True)

    def digest(self, model: nn.Module) -> str:
        """What tells this reference from another; the frozen weights."""
        return digest({name: p for name, p in model.named_parameters() if not p.requires_grad})

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold beside the model to resume with the same reference: nothing."""
        return {}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back :meth:`tensors`."""


class InitialReference:
    """The model with the adapter as training began: a frozen copy outside PEFT's own list, never exported.

    For the reference pass the trained weights are set aside, the copy takes their place, and they come back to the bit.

    Raises:
        ConfigError: If the model has no adapter: a copy of all weights is what a path is for.
    """

    name = "initial"

    def __init__(self, model: nn.Module) -> None:
        if not switchable_layers(model):
            raise ConfigError(
                "reference='initial' keeps a copy of the adapter as training began, but full fine-tuning has none.",
                "name the model to be held to: --reference PATH (usually the value of --model_name_or_path).",
            )
        self._start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    @contextmanager
    def serving(self, model: nn.Module) -> Iterator[nn.Module]:
        """As :meth:`BaseReference.serving`."""
        trained = {name: p for name, p in model.named_parameters() if name in self._start}
        with torch.no_grad(), uncached_autocast(), evaluating(model):
            aside = {name: p.detach().clone() for name, p in trained.items()}
            try:
                for name, p in trained.items():
                    p.copy_(self._start[name])
                yield model
            finally:
                for name, p in trained.items():
                    p.copy_(aside[name])

    def head(self, model: nn.Module) -> LMHead | None:
        """As :meth:`BaseReference.head`."""
        # By the layer's own parameters, before sharded ones are gathered into new tensors.
        layer = head_layer(model)
        start = {id(p): self._start[name] for name, p in model.named_parameters() if name in self._start}
        weight_VH, bias_V = start.get(id(layer.weight)), start.get(id(getattr(layer, "bias", None)))
        if weight_VH is None and bias_V is None:
            return None
        tuned = head_of(model)
        return replace(
            tuned,
            weight_VH=tuned.weight_VH if weight_VH is None else weight_VH,
            bias_V=tuned.bias_V if bias_V is None else bias_V,
        )

    def digest(self, model: nn.Module) -> str:
        """What tells this reference from another: the frozen weights and the copy."""
        frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
        return digest({**frozen, **{f"initial.{name}": p for name, p in self._start.items()}})

    def tensors(self) -> dict[str, Tensor]:
        """The copy, for checkpoints."""
        return dict(self._start)

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back :meth:`tensors`.

        Raises:
            ConfigError: If names or shapes differ.
        """
        stored, own = ({name: tuple(t.shape) for name, t in part.items()} for part in (tensors, self._start))
        if stored != own:
            name = min(name for name in {*stored, *own} if stored.get(name) != own.get(name))
            raise ConfigError(
                f"the checkpoint's initial adapter is not of this run's kind: {name} has shape {stored.get(name)} "
                f"there and {own.get(name)} here.",
                "resume with the adapter settings that the run began with, or begin a new run.",
            )
        for name, tensor in tensors.items():
            self._start[name].copy_(tensor)
