"""References within the trained model: its adapter off (`base`), or its adapter as training began (`initial`)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from selfaug.common.errors import ConfigError
from selfaug.model.libraries import is_zero_parameter, switchable_layers
from selfaug.model.parts import head_layer, head_of
from selfaug.model.sharding import (
    assign,
    exchange,
    held,
    is_split,
    plain_name,
    reshard,
    trained,
    whole,
    whole_shape,
)
from selfaug.model.switch import adapters_off, evaluating, uncached_autocast
from selfaug.objective.head import LMHead

__all__ = ["BaseReference", "InitialReference", "digest"]

# Elements of a weight that enter a digest: enough to distinguish two models, and cheap at 70B parameters.
_DIGEST_SAMPLE = 4096


def digest(weights: Mapping[str, Tensor]) -> str:
    """Return the sha256 of names, shapes, dtypes and an even sample of up to 8,191 elements of each weight.

    Weights that are split over ranks are gathered one by one, so the digest does not depend on the sharding.
    """
    sha = hashlib.sha256()
    for name in sorted(weights):
        value = whole(weights[name])
        flat = value.reshape(-1)
        sample = flat[:: max(1, flat.numel() // _DIGEST_SAMPLE)].contiguous().cpu()
        sha.update(f"{name} {tuple(value.shape)} {sample.dtype}".encode())
        sha.update(sample.view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


class BaseReference:
    """The base model: the trained model with its adapter off."""

    name = "base"

    @contextmanager
    def serving(self, model: nn.Module) -> Iterator[nn.Module]:
        """Yield a model whose body returns the reference's hidden states, without gradient or dropout."""
        with torch.no_grad(), uncached_autocast(), adapters_off(model), evaluating(model):
            yield model

    def head(self, model: nn.Module) -> LMHead | None:
        """Return the reference's own head; ``None`` where it shares the tuned model's."""
        # Weights are not compared, since sharded ones are gathered into new tensors each time.
        copied = getattr(model.get_output_embeddings(), "modules_to_save", None)  # type: ignore[operator]
        return None if copied is None else head_of(model, reference=True)

    def digest(self, model: nn.Module) -> str:
        """Return a hash that identifies this reference, here of the frozen weights."""
        return digest(_frozen(model))

    def prepare(self, model: nn.Module, accelerator: Any) -> None:
        """Shard what the reference holds as the model has just been sharded, before any pass. Collective."""

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the whole tensors that a checkpoint needs beside the model, here none. Collective."""
        return {}

    def load_tensors(self, tensors: Mapping[str, Tensor], model: nn.Module) -> None:
        """Restore :meth:`tensors` from a checkpoint. Collective."""


class InitialReference:
    """The model with its adapter as training began: a frozen copy outside PEFT's list of adapters, never exported.

    For the reference pass the copy and the trained weights are exchanged, and afterwards back again, bit for bit. Of a
    model that is split over ranks, each rank copies the part that it holds.

    Raises:
        ConfigError: If the model has no adapter.
    """

    name = "initial"

    def __init__(self, model: nn.Module) -> None:
        if not switchable_layers(model):
            raise ConfigError(
                "reference='initial' keeps a copy of the adapter as training began, but full fine-tuning has none.",
                "name the reference model: --reference PATH (usually the value of --model_name_or_path).",
            )
        self._copy(model)

    def _copy(self, model: nn.Module) -> None:
        self._start = {name: held(p).clone() for name, p in trained(model)}
        self._shapes = {name: whole_shape(p) for name, p in trained(model)}
        self._split = {name: is_split(p) for name, p in trained(model)}

    def prepare(self, model: nn.Module, accelerator: Any) -> None:
        """Copy the parts that this rank holds, as :meth:`BaseReference.prepare`.

        Raises:
            ConfigError: If the head is trained and ZeRO-3 splits it.
        """
        self._copy(model)
        head = head_layer(model)
        if any(p.requires_grad and is_zero_parameter(p) for p in head.parameters(recurse=False)):
            raise ConfigError(
                "reference='initial' keeps the head as training began, and this run trains the head "
                "(modules_to_save), which ZeRO stage 3 splits over ranks.",
                "leave the head out of modules_to_save, or use ZeRO stage 2 or DDP.",
            )

    def renew(self, model: nn.Module) -> None:
        """Replace the copy by the weights as they are now."""
        self._copy(model)

    @contextmanager
    def serving(self, model: nn.Module) -> Iterator[nn.Module]:
        """Yield the model with the copy in place, as :meth:`BaseReference.serving`."""
        with torch.no_grad(), uncached_autocast(), evaluating(model):
            self._exchange(model)
            try:
                yield model
            finally:
                self._exchange(model)

    def _exchange(self, model: nn.Module) -> None:
        # A group of weights that a pass left gathered would serve the next pass with the values of this one.
        reshard(model)
        weights = dict(trained(model))
        if lost := sorted(name for name, split in self._split.items() if is_split(weights[name]) != split):
            raise ConfigError(
                f"reference='initial' exchanges the trained weights before and after its pass, and FSDP keeps "
                f"{lost[0]} gathered from one pass to the next.",
                "train an adapter on the layers alone, without modules_to_save or embeddings; or use DDP or ZeRO.",
            )
        for name, start in self._start.items():
            exchange(weights[name], start)

    def head(self, model: nn.Module) -> LMHead | None:
        """Return the head as training began, as :meth:`BaseReference.head`."""
        # Parameters are matched on the layer itself, since sharded ones are gathered into new tensors.
        layer = head_layer(model)
        start = {id(p): self._start[name] for name, p in trained(model)}
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
        """Return a hash of the frozen weights and the copy."""
        return digest({**_frozen(model), **{f"initial.{name}": t for name, t in self.tensors(model).items()}})

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the copy, whole on every rank. Collective."""
        if not any(self._split.values()):
            return dict(self._start)
        self._exchange(model)
        try:
            return {name: whole(p).clone() for name, p in trained(model)}
        finally:
            self._exchange(model)

    def load_tensors(self, tensors: Mapping[str, Tensor], model: nn.Module) -> None:
        """Restore :meth:`tensors` from a checkpoint. Collective.

        Raises:
            ConfigError: If names or shapes differ.
        """
        stored = {name: tuple(t.shape) for name, t in tensors.items()}
        if stored != self._shapes:
            name = min(name for name in {*stored, *self._shapes} if stored.get(name) != self._shapes.get(name))
            raise ConfigError(
                f"the checkpoint's initial adapter is not of this run's kind: {name} has shape {stored.get(name)} "
                f"there and {self._shapes.get(name)} here.",
                "resume with the adapter settings that the run began with, or begin a new run.",
            )
        weights = dict(trained(model))
        self._exchange(model)
        try:
            for name in sorted(tensors):
                assign(weights[name], tensors[name])
        finally:
            self._exchange(model)


def _frozen(model: nn.Module) -> dict[str, Tensor]:
    return {plain_name(name): p for name, p in model.named_parameters() if not p.requires_grad}
