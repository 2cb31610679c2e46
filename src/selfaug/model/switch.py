"""Context managers that switch a model for a pass: adapter off, evaluation mode, no autocast cache.

The adapter is switched by its flag alone. PEFT's own `disable_adapter()` also flips `requires_grad` on every adapter
weight, which costs time and, with FSDP2, can leave the adapter frozen.
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
    """Make every adapter layer of ``model`` output what its base layer does; no parameter is touched."""
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
    """Put every module in evaluation mode (no dropout, no checkpointing), and restore each module's own mode."""
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
    """Make autocast round a weight at each use instead of caching the copy from its first use.

    A copy that was cached without gradient, or while a weight held other values, would otherwise serve the training
    pass that follows under the same autocast.
    """
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(cached)
