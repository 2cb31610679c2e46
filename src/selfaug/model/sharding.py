"""Weights that FSDP2 or ZeRO-3 split over ranks: whole shapes and values, and the part that a rank holds.

Functions that say so are collective: every rank must call them, with its parameters in the same order. A weight that is
not split is whole on each rank, and the same functions apply to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from selfaug.model.libraries import gathered_head, is_zero_parameter, release_zero_parameter

__all__ = [
    "assign", "exchange", "held", "is_split", "plain_name", "released", "reshard", "trained", "whole", "whole_shape",
]  # fmt: skip


def is_split(weight: Any) -> bool:
    """Whether this rank holds a part of the weight alone."""
    return hasattr(weight, "full_tensor") or is_zero_parameter(weight)


def whole_shape(weight: Any) -> tuple[int, ...]:
    """Return the shape of the whole weight."""
    return tuple(weight.ds_shape if is_zero_parameter(weight) else weight.shape)


def whole(weight: Any) -> Tensor:
    """Return the whole weight, detached; a copy only where it is split. Collective."""
    if is_zero_parameter(weight):
        with gathered_head(weight):
            return torch.Tensor.detach(weight).clone()
    gather = getattr(weight, "full_tensor", None)
    value: Tensor = weight.detach() if gather is None else gather().detach()
    return value


def held(weight: Any) -> Tensor:
    """Return the part of the weight that this rank holds; writing to it changes the weight (then see `released`)."""
    if is_zero_parameter(weight):
        part: Tensor = weight.ds_tensor
    else:
        part = weight.detach()
        part = part.to_local() if hasattr(part, "to_local") else part
    return part.detach()


def released(weight: Any) -> None:
    """Forget a gathered copy of a ZeRO-3 weight whose part was written to. Collective in that all ranks must do it."""
    if is_zero_parameter(weight):
        release_zero_parameter(weight)


@torch.no_grad()
def exchange(weight: Any, part: Tensor) -> None:
    """Exchange the values of this rank's part of a weight with those of ``part``, in place, bit for bit."""
    mine = held(weight)
    before = mine.clone()
    mine.copy_(part)
    part.copy_(before)
    released(weight)


@torch.no_grad()
def assign(weight: Any, value: Tensor) -> None:
    """Set a weight to a whole value, of which each rank keeps its part. Collective."""
    if is_zero_parameter(weight):
        with gathered_head(weight, write=True):
            torch.Tensor.detach(weight).copy_(value)
        return
    if hasattr(weight, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(held(weight)), weight.device_mesh, weight.placements, src_data_rank=None)
    weight.detach().copy_(value)


def reshard(model: nn.Module) -> None:
    """Give up the gathered weights of every FSDP2 module, so that a later pass gathers them anew from their parts."""
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()  # type: ignore[operator]


def plain_name(name: str) -> str:
    """Return a parameter's name without what FSDP's activation checkpointing adds."""
    return name.replace("_checkpoint_wrapped_module.", "")


def trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the trained parameters by :func:`plain_name`."""
    return ((plain_name(name), p) for name, p in model.named_parameters() if p.requires_grad)
