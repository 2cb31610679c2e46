"""References: the sources of the base's hidden states during training."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from selfaug.objective.head import LMHead

__all__ = ["Reference", "make_reference"]


class Reference(Protocol):
    """A source of the base's hidden states for given tokens; `adapter.BaseReference` documents each member."""

    @property
    def name(self) -> str: ...  # noqa: D102

    def serving(self, model: nn.Module) -> AbstractContextManager[nn.Module]: ...  # noqa: D102
    def head(self, model: nn.Module) -> LMHead | None: ...  # noqa: D102
    def digest(self, model: nn.Module) -> str: ...  # noqa: D102
    def prepare(self, model: nn.Module, accelerator: Any) -> None: ...  # noqa: D102
    def tensors(self, model: nn.Module) -> dict[str, Tensor]: ...  # noqa: D102
    def load_tensors(self, tensors: Mapping[str, Tensor], model: nn.Module) -> None: ...  # noqa: D102


def make_reference(kind: str, model: nn.Module, **init_kwargs: Any) -> Reference:
    """Return the reference of a kind: ``base``, ``initial``, or a path or hub name of a model.

    Args:
        kind: Kind of the reference.
        model: Causal LM inside PEFT's wrapper, before any distributed wrapper.
        init_kwargs: Arguments of ``from_pretrained`` for a path.
    """
    from selfaug.reference.adapter import BaseReference, InitialReference
    from selfaug.reference.frozen import FrozenReference

    if kind == "base":
        return BaseReference()
    if kind == "initial":
        return InitialReference(model)
    return FrozenReference(kind, model, **init_kwargs)
