"""The weight α of the alignment that brings the shift on prompts to a target: a constrained problem, solved on the way.

    minimise NLL   subject to   shift = E[KL(base ‖ tuned)] <= target      (nats a prompt token)

α is the multiplier of the constraint. It follows the sums and counts that a step has anyway: no further pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from selfaug.common.errors import ConfigError

if TYPE_CHECKING:
    from selfaug.step.driver import StepDriver

__all__ = ["ShiftTarget", "check_target", "first_weight"]

_EARLY = 0.1
"""Share of the steps in which the weight stays as it began."""
_GAIN = 1.6
"""Change of log α for each nat of log shift: at a fixed α the shift of a finished training falls with α^-0.6."""
_LARGEST = 1.25
"""Largest error that one step answers to."""
_LOWEST, _HIGHEST = math.log(1e-3), math.log(1e3)
"""Bounds of log α: where the constraint does not bind, α falls to (nearly) nothing."""
_FILE_KEY = "shift_target."


@dataclass
class _State:
    """The sums of the estimate (nats, tokens), the number of steps, E (0 where not known), and log α."""

    nats: float
    tokens: float
    steps: float
    early: float
    log_alpha: float


class ShiftTarget:
    """``log α ← log α + 1.6 e / n`` after step n, for n beyond the first tenth; e is cut to [-1.25, 1.25].

    ``e = log(shift / allowed)``, ``allowed = target (E / target)^(r / 0.9)``: r is the share of the steps that are
    left, E the shift at the end of the first tenth, or the target where that is larger.

    - The shift is the ratio ``S / N`` of two decaying sums over steps, micro-batches and ranks: ``S ← k S + Σ_drawn
      kl``, ``N ← k N + n_drawn``. Both have the same chance of a draw, so the ratio needs no divisor, is consistent
      under any draw, weighs a step by the tokens that it drew, and stays where nothing is drawn. With ``k = 1 / (1 +
      f)`` it spans (1 + f) / f steps, two at f = 1 and nine at f = 1/8: one to two steps' worth of tokens.
    - At a fixed α the shift rises at once, and falls in about equal ratios as the learning rate falls. So E is
      measured, and the target is asked for at the end. Asked for from the start, it would need an α that is too high.
    - The steps' corrections shrink with 1 / n, so that α is nearly fixed: what the first steps move under too weak an
      α costs task score when a strong one pulls it back.

    Errors are relative and α is changed by factors, so that neither the scale of the target nor that of α matters.
    Source: stochastic approximation (Robbins and Monro 1951) of the α whose training ends at the target.

    Args:
        target: Shift in nats a prompt token, above 0.
        start: α of the first tenth, above 0 (:func:`first_weight`).
        share: Probability f in (0, 1] that an aligned token is drawn.
    """

    def __init__(self, target: float, start: float, share: float = 1.0) -> None:
        self.target, self._kept = target, 1.0 / (1.0 + share)
        self._state = _State(0.0, 0.0, 0.0, 0.0, math.log(start))

    @property
    def shift(self) -> float | None:
        """The estimate of the shift, nats a prompt token; ``None`` before anything is drawn."""
        return self._state.nats / self._state.tokens if self._state.tokens else None

    @property
    def alpha(self) -> float:
        """The weight that the next step takes."""
        return math.exp(self._state.log_alpha)

    def follow(self, driver: StepDriver, step: int, steps: int) -> None:
        """Update α by the step that the driver has just computed, for its next one. Every rank must call this.

        Args:
            driver: Driver of the steps.
            step: Number of optimiser steps before this one.
            steps: Number of steps of the training.
        """
        self.update(*driver.step_shift(), max(0.0, 1.0 - (step + 1) / steps))
        self.apply(driver)

    def apply(self, driver: StepDriver) -> None:
        """Give the driver's alignment the weight α."""
        driver.objective.reweight("alignment", self.alpha)

    def logs(self) -> dict[str, float]:
        """Return what is logged: ``alpha`` of the next step, and ``shift``, its estimate where there is one."""
        return {"alpha": self.alpha} | ({} if self.shift is None else {"shift": self.shift})

    def update(self, nats: float, tokens: int, left: float) -> None:
        """Take a step's sum of the KL over drawn tokens of all ranks, their number, and the share of steps left, r."""
        state = self._state
        state.nats, state.tokens = self._kept * state.nats + nats, self._kept * state.tokens + tokens
        state.steps += 1
        if self.shift is None:
            return
        if left >= 1.0 - _EARLY:
            state.early = self.shift
            return
        rise = math.log(max(state.early / self.target, 1.0))
        error = math.log(max(self.shift / self.target, 1e-9)) - rise * left / (1.0 - _EARLY)
        change = _GAIN / state.steps * _cut(error, -_LARGEST, _LARGEST)
        state.log_alpha = _cut(state.log_alpha + change, _LOWEST, _HIGHEST)

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold."""
        return {_FILE_KEY + k: torch.tensor(v, dtype=torch.float64) for k, v in asdict(self._state).items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore :meth:`tensors` from a checkpoint.

        Raises:
            ConfigError: If the checkpoint was trained without a target.
        """
        try:
            self._state = _State(**{name: float(tensors[_FILE_KEY + name]) for name in asdict(self._state)})
        except KeyError:
            raise ConfigError(
                "the checkpoint knows no α for align_target: it was trained with a fixed one, so the run would go on "
                "as another one.",
                "resume with the same settings, or begin a new run.",
            ) from None


def first_weight(target: float) -> float:
    """``(0.27 / target)^1.5`` within the bounds of α: before anything is known, what ended at the target in the lab."""
    return math.exp(_cut(1.5 * math.log(0.27 / target), _LOWEST, _HIGHEST))


def _cut(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def check_target(target: float, alpha: float | None, direction: str | None) -> None:
    """Refuse a target that is none, or that contradicts other settings.

    Args:
        target: Value of ``align_target``.
        alpha: Given weight; ``None`` where none is given.
        direction: Direction of the divergence; ``None`` for the default.

    Raises:
        ConfigError: With the remedy.
    """
    if not 0 < target < math.inf:
        raise ConfigError(
            f"align_target={target} is not a shift that a tuned model can have: KL(base ‖ tuned) in nats a prompt "
            "token.",
            "give a number above 0, e.g. 0.05; to leave the base as it is, do not train; for no limit give --alpha 0.",
        )
    if alpha is not None:
        raise ConfigError(
            f"alpha={alpha} fixes the weight of the alignment, and align_target={target} finds it during training.",
            "give one of the two.",
        )
    if direction not in (None, "base_to_tuned"):
        raise ConfigError(
            f"align_target={target} is a shift KL(base ‖ tuned), and align_direction={direction!r} trains another "
            "divergence, of which a step does not know the shift.",
            "leave align_direction at base_to_tuned, or give an alpha.",
        )
