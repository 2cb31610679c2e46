"""Activation terms: distances between the tuned and the base model's activations at the aligned positions.

Forward hooks capture the outputs of named modules in both passes. In the training pass the outputs are stored as they
are: an operation on them inside a checkpointed layer would be missing when the layer is recomputed.

Shapes: T tokens of a pass (flattened), N aligned positions, D features of a module's output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from selfaug.common.errors import ConfigError

__all__ = ["ActivationTerm", "Activations", "find_modules", "squared_difference"]


@dataclass(frozen=True)
class ActivationTerm:
    """``weight · mean_modules Σ_n mean_d (tuned - base)² / (f · n_aligned)``.

    ``f = align_fraction · align_token_fraction`` is the probability that an aligned position is drawn.

    Args:
        name: Name of the log entry.
        weight: Weight in the loss.
        kinds: Kinds of modules; for each, the last part of its name in the various architectures.
    """

    name: str
    weight: float
    kinds: tuple[tuple[str, ...], ...]


def squared_difference(tuned_ND: Tensor, base_ND: Tensor) -> Tensor:
    """``Σ_n mean_d (tuned - base)²``, in float32 (float64 for float64 activations)."""
    wide = torch.float64 if tuned_ND.dtype == torch.float64 else torch.float32
    return (tuned_ND.to(wide) - base_ND.to(wide)).square().mean(dim=-1).sum()


def find_modules(body: nn.Module, kinds: Sequence[Sequence[str]]) -> dict[str, nn.Module]:
    """Return the modules of these kinds by name, in the order of the model.

    Raises:
        ConfigError: If the model has no module of one of the kinds.
    """
    modules = {name: (name.rpartition(".")[2], module) for name, module in body.named_modules()}
    for kind in kinds:
        if not any(last in kind for last, _ in modules.values()):
            raise ConfigError(
                f"{type(body).__name__} has no module named {' or '.join(map(repr, kind))}, whose output the method "
                "would align with the base's.",
                "align something else, or use --method selfaug, which works with any model.",
            )
    wanted = {last for kind in kinds for last in kind}
    return {name: module for name, (last, module) in modules.items() if last in wanted}


class Activations:
    """Activations of one micro-batch at the aligned positions, captured in both passes.

    Args:
        term: Activation term of the method; with ``None`` nothing is captured.
        tuned_N: Aligned positions in the flattened training pass.
        base_N: The same positions in the flattened reference pass; with ``None`` (no pass) nothing is captured.
    """

    def __init__(self, term: ActivationTerm | None, tuned_N: Tensor, base_N: Tensor | None) -> None:
        self._term = None if base_N is None else term
        self._tuned_N, self._base_N = tuned_N, base_N
        self._tuned: dict[str, Tensor] = {}
        self._base: dict[str, Tensor] = {}

    @contextmanager
    def of_base(self, body: nn.Module) -> Iterator[None]:
        """Capture a call of ``body`` as the reference pass; only the aligned rows are kept."""

        def keep(name: str, output: Tensor) -> None:
            assert self._base_N is not None
            self._base[name] = _rows(output, self._base_N)

        with self._capturing(body, keep):
            yield

    @contextmanager
    def of_tuned(self, body: nn.Module) -> Iterator[None]:
        """Capture a call of ``body`` as the training pass."""
        with self._capturing(body, self._tuned.__setitem__):
            yield

    @contextmanager
    def _capturing(self, body: nn.Module, keep: Any) -> Iterator[None]:
        handles = []
        if self._term is not None:
            for name, module in find_modules(body, self._term.kinds).items():
                handles.append(module.register_forward_hook(_hook(name, keep)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def value(self) -> Tensor | None:
        """``mean_modules Σ_n mean_d (tuned - base)²``, with a graph; ``None`` where nothing was captured."""
        if self._term is None:
            return None
        assert self._tuned.keys() == self._base.keys() != set()
        distances = [
            squared_difference(_rows(self._tuned[name], self._tuned_N), base) for name, base in self._base.items()
        ]
        return torch.stack([d.to(distances[0].device) for d in distances]).mean()


def _hook(name: str, keep: Any) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        # A mixture-of-experts module returns its router's logits as well.
        keep(name, output[0] if isinstance(output, tuple) else output)

    return hook


def _rows(output: Tensor, index_N: Tensor) -> Tensor:
    return output.reshape(-1, output.shape[-1])[index_N.to(output.device)]
