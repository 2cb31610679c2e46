"""The work around each optimiser step: α for a target, a rate by the loss, constraints, weights of earlier steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

if TYPE_CHECKING:
    from selfaug.methods.base import Changes
    from selfaug.reference.adapter import InitialReference
    from selfaug.step.driver import StepDriver
    from selfaug.step.shift_target import ShiftTarget

__all__ = ["AroundSteps"]

_NLL, _OLD = "rate.nll", "earlier."


class AroundSteps(TrainerCallback):
    """Runs a method's work around each optimiser step, and keeps what it must remember between steps.

    Args:
        model: Causal LM inside all wrappers.
        changes: Changes of the method.
        driver: Driver of the steps.
        earlier: Copy of the trained weights at an earlier step; ``None`` for none.
        target: Target of the shift, which sets the weight of the alignment; ``None`` for a fixed weight.
    """

    def __init__(
        self,
        model: nn.Module,
        changes: Changes,
        driver: StepDriver,
        earlier: InitialReference | None,
        target: ShiftTarget | None,
    ) -> None:
        self._model, self._target = model, target
        self._changes, self._driver, self._earlier = changes, driver, earlier
        self._project: list[Callable[[], None]] = []
        self._nll: float | None = None
        self._rates: list[float] = []

    def prepare(self) -> None:
        """Constrain the model; before a checkpoint is loaded, which holds constrained weights."""
        if not self._project:
            self._project = [constrain(self._model) for constrain in self._changes.constraints]

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the earlier weights anew, where it is time."""
        proximal = self._changes.proximal
        if proximal is not None and self._earlier is not None and state.global_step % proximal.renew_steps == 0:
            self._earlier.renew(self._model)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Find the weight of the next step's alignment, and multiply the learning rate by the factor of the loss."""
        if self._target is not None:
            self._target.follow(self._driver, state.global_step, state.max_steps)
        rate = self._changes.rate
        if rate is None:
            return
        nll = self._driver.step_nll()
        if nll is not None:
            before = nll if self._nll is None else self._nll
            self._nll = rate.smoothing * before + (1 - rate.smoothing) * nll
        factor = 1.0 if self._nll is None else rate.factor(self._nll)
        self._rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * factor

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Restore the learning rate for its scheduler, and constrain the update."""
        if self._rates:
            for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate
        self._rates = []
        for project in self._project:
            project()

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold."""
        kept = {} if self._nll is None else {_NLL: torch.tensor(self._nll, dtype=torch.float64)}
        earlier = {} if self._earlier is None else self._earlier.tensors(self._model)
        target = {} if self._target is None else self._target.tensors()
        return kept | target | {_OLD + name: tensor for name, tensor in earlier.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore :meth:`tensors` from a checkpoint."""
        if _NLL in tensors:
            self._nll = float(tensors[_NLL])
        if self._target is not None:
            self._target.load_tensors(tensors)
            self._target.apply(self._driver)
        if self._earlier is not None:
            own = {n.removeprefix(_OLD): t for n, t in tensors.items() if n.startswith(_OLD)}
            self._earlier.load_tensors(own, self._model)
