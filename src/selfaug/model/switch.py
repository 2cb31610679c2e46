"""Switches of a model for a pass: its adapter off, evaluation mode, no cached casts; each is put back afterwards.

The adapter is switched by its flag alone. PEFT's own `disable_adapter()` also flips `requires_grad` on every adapter
weight, which costs time and, with FSDP2, can leave the adapter frozen for good.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from selfaug.model.libraries import switchable_layers

__all__ = ["adapters_off", "evaluating", "uncached_autocast"]


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Inside, every adapter layer of ``model`` gives its base layer's output. No parameter is touched."""
    layers = [layer for layer in switchable_layers(model) if not layer._disable_adapters]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, every module is in evaluation mode (no dropout, no checkpointing); each gets its own mode back."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def uncached_autocast() -> Iterator[None]:
    """Inside, autocast rounds each weight anew instead of keeping the copy that it made at the weight's first use.

    A copy made while other values stand in a weight would otherwise serve the training pass that follows under the
    same autocast, values and missing gradient included.
    """
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(cached)
