"""The reference for full fine-tuning: a frozen model, loaded from a path or hub name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from selfaug.common.errors import ConfigError
from selfaug.model.parts import body_of, head_layer, head_of
from selfaug.model.sharding import is_split, reshard, whole_shape
from selfaug.objective.head import LMHead
from selfaug.reference.adapter import digest

__all__ = ["FrozenReference"]


class FrozenReference:
    """A second model that is never trained, on the trained model's device and in its dtype.

    It is not a submodule of the trained model, so that nothing saves or optimises it. :meth:`prepare` shards it as
    the trained model is sharded.

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
        theirs, ours = (whole_shape(head_layer(each).weight)[0] for each in (frozen, model))
        if theirs != ours:
            raise ConfigError(
                f"reference={path!r} has a vocabulary of {theirs} tokens, the trained model one of {ours}: a "
                "distribution over one cannot be compared with one over the other.",
                "name the model that training starts from.",
            )
        self._model = frozen.eval().requires_grad_(False)
        self._tied = head_layer(frozen).weight is frozen.get_input_embeddings().weight  # type: ignore[operator]

    def prepare(self, model: nn.Module, accelerator: Any) -> None:
        """Shard the frozen model as the trained one is: with FSDP2, or with ZeRO stage 3. Collective.

        Its body is sharded as a model of its own, since a reference pass calls the body alone.
        """
        body = body_of(self._model)
        if getattr(accelerator, "is_fsdp2", False):
            from accelerate.utils import fsdp2_prepare_model

            fsdp2_prepare_model(accelerator, body)
            embedding, head = self._model.get_input_embeddings().weight, head_layer(self._model)  # type: ignore[operator]
            head.weight = embedding if self._tied else _split_like(head.weight, embedding)
        elif any(is_split(p) for p in self._model.parameters()):
            from trl.models.utils import prepare_deepspeed

            prepare_deepspeed(body, accelerator)
        self._model.requires_grad_(False)

    @contextmanager
    def serving(self, model: nn.Module) -> Iterator[nn.Module]:
        """Yield the frozen model, as :meth:`selfaug.reference.adapter.BaseReference.serving`."""
        first, device = next(self._model.parameters()), next(model.parameters()).device
        if first.device != device and not is_split(first):
            self._model.to(device)
        with torch.no_grad():
            try:
                yield self._model
            finally:  # without a backward pass FSDP2 would keep the outermost weights gathered
                reshard(self._model)

    def head(self, model: nn.Module) -> LMHead | None:
        """Return the frozen model's own head."""
        return head_of(self._model)

    def digest(self, model: nn.Module) -> str:
        """Return a hash of all its weights."""
        return digest(dict(self._model.named_parameters()))

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Return nothing: the configuration has the path, and the digest shows whether its weights are the same."""
        return {}

    def load_tensors(self, tensors: Mapping[str, Tensor], model: nn.Module) -> None:
        """Do nothing, since :meth:`tensors` is empty."""


def _split_like(weight: Tensor, other: Any) -> nn.Parameter:
    """Return a whole weight, split over ranks as another; the values are those of the first rank."""
    from torch.distributed.tensor import distribute_tensor

    device = other.to_local().device
    value = torch.empty_like(weight, device=device) if weight.is_meta else weight.detach().to(device)
    return nn.Parameter(distribute_tensor(value, other.device_mesh, other.placements), requires_grad=False)
