"""References within the trained model: its adapter off (`base`), or its adapter as training began (`initial`)."""

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

# Elements of a weight that enter a digest: enough to distinguish two models, and cheap at 70B parameters.
_DIGEST_SAMPLE = 4096


def digest(weights: Mapping[str, Tensor]) -> str:
    """Return the sha256 of names, shapes, dtypes and an even sample of up to 8,191 elements of each weight."""
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
        return digest({name: p for name, p in model.named_parameters() if not p.requires_grad})

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint needs beside the model to restore the reference, here none."""
        return {}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore :meth:`tensors` from a checkpoint."""


class InitialReference:
    """The model with its adapter as training began: a frozen copy outside PEFT's list of adapters, never exported.

    For the reference pass the copy replaces the trained weights, which are then restored bit for bit.

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
        self._start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def renew(self, model: nn.Module) -> None:
        """Replace the copy by the weights as they are now."""
        for name, p in model.named_parameters():
            if name in self._start:
                self._start[name].copy_(p.detach())

    @contextmanager
    def serving(self, model: nn.Module) -> Iterator[nn.Module]:
        """Yield the model with the copy in place, as :meth:`BaseReference.serving`."""
        trained = {name: p for name, p in model.named_parameters() if name in self._start}
        with torch.no_grad(), uncached_autocast(), evaluating(model):
            tuned = {name: p.detach().clone() for name, p in trained.items()}
            try:
                for name, p in trained.items():
                    p.copy_(self._start[name])
                yield model
            finally:
                for name, p in trained.items():
                    p.copy_(tuned[name])

    def head(self, model: nn.Module) -> LMHead | None:
        """Return the head as training began, as :meth:`BaseReference.head`."""
        # Parameters are matched on the layer itself, since sharded ones are gathered into new tensors.
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
        """Return a hash of the frozen weights and the copy."""
        frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
        return digest({**frozen, **{f"initial.{name}": p for name, p in self._start.items()}})

    def tensors(self) -> dict[str, Tensor]:
        """Return the copy."""
        return dict(self._start)

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore :meth:`tensors` from a checkpoint.

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
