"""The reference for full fine-tuning: a frozen model, loaded from a path or hub name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from selfaug.common.errors import ConfigError
from selfaug.model.parts import head_of
from selfaug.objective.head import LMHead
from selfaug.reference.adapter import digest

__all__ = ["FrozenReference"]


class FrozenReference:
    """A second model that is never trained, on the trained model's device and in its dtype.

    It is not a submodule of the trained model, so that nothing shards, saves or optimises it. Every rank holds a whole
    copy.

    Args:
        path: Folder or hub name of the model.
        model: The trained model.
        loaded: The model of ``path``, where it is in memory already; it stays where it is.
        init_kwargs: For ``from_pretrained``.

    Raises:
        ConfigError: If its vocabulary differs from the trained model's.
    """

    name = "path"

    def __init__(self, path: str, model: nn.Module, *, loaded: nn.Module | None = None, **init_kwargs: Any) -> None:
        from transformers import AutoModelForCausalLM

        first = next(model.parameters())
        if loaded is None:
            init_kwargs.setdefault("dtype", first.dtype)
            loaded = AutoModelForCausalLM.from_pretrained(path, **init_kwargs).to(first.device)
        frozen: nn.Module = loaded
        theirs, ours = head_of(frozen).weight_VH.shape[0], head_of(model).weight_VH.shape[0]
        if theirs != ours:
            raise ConfigError(
                f"reference={path!r} has a vocabulary of {theirs} tokens, the trained model one of {ours}: a "
                "distribution over one cannot be compared with one over the other.",
                "name the model that training starts from.",
            )
        self._model = frozen.eval().requires_grad_(False)

    @contextmanager
    def serving(self, model: nn.Module) -> Iterator[nn.Module]:
        """Yield the frozen model, as :meth:`selfaug.reference.adapter.BaseReference.serving`."""
        device = next(model.parameters()).device
        if next(self._model.parameters()).device != device:
            self._model.to(device)
        with torch.no_grad():
            yield self._model

    def head(self, model: nn.Module) -> LMHead | None:
        """Return the frozen model's own head."""
        return head_of(self._model)

    def digest(self, model: nn.Module) -> str:
        """Return a hash of all its weights."""
        return digest(dict(self._model.named_parameters()))

    def tensors(self) -> dict[str, Tensor]:
        """Return nothing: the configuration has the path, and the digest shows whether its weights are the same."""
        return {}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Do nothing, since :meth:`tensors` is empty."""
