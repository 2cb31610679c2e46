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

__all__ = ["ShiftTarget", "check_target"]

_INTEGRAL, _PROPORTIONAL, _AHEAD = 0.15, 0.6, 10.0
"""Gains on log α, per step and at once; steps over which a violation that is going away is not counted."""
_LOWEST, _HIGHEST = math.log(1e-3), math.log(1e3)
"""Bounds of the integral, log α at the target: where the constraint does not bind, α falls to (nearly) nothing."""
_FILE_KEY = "shift_target."


@dataclass
class _State:
    """The sums of the estimate (nats, tokens), the last violation, and b."""

    nats: float
    tokens: float
    violation: float
    log_alpha: float


class ShiftTarget:
    """``log α = b + 0.6 e``, and after each step ``b ← b + 0.15 r c e``, r the share of steps that are left.

    ``v = shift / (target (1 + r³)) - 1``; ``e`` is v cut to [-1, 1], ``c = 1 + 10 (v - v_before) / v`` cut to [0, 1].

    - The shift is the ratio ``S / N`` of two decaying sums over steps, micro-batches and ranks: ``S ← k S + Σ_drawn
      kl``, ``N ← k N + n_drawn``. Both have the same chance of a draw, so the ratio needs no divisor, is consistent
      under any draw, weighs a step by the tokens that it drew, and stays where nothing is drawn. With ``k = 1 / (1 +
      f)`` it spans (1 + f) / f steps, two at f = 1 and nine at f = 1/8: one to two steps' worth of tokens.
    - The proportional part follows the shift as it rises, before b has moved. An integral alone overshoots.
    - c leaves out of the integral what goes away within ten steps as it is, such as the first steps' excess.
    - With a falling learning rate the shift of a fixed α falls as well, at first by the noise of large steps. Holding
      it from the start would need an α that is too high at the end, when little moves any more. So twice the target is
      allowed at first, 1.125 times half-way, and the integral moves in proportion to r.

    Errors are relative and α is changed by factors, so that neither the scale of the target nor that of α matters.

    Source: the proportional-integral multiplier of Stooke et al., arXiv 2007.03964, there on the multiplier itself.
    Differences: its logarithm, c and r, the estimate, and no derivative.

    Args:
        target: Shift in nats a prompt token, above 0.
        start: α at the target before anything is known, above 0.
        share: Probability f in (0, 1] that an aligned token is drawn.
    """

    def __init__(self, target: float, start: float, share: float = 1.0) -> None:
        self.target, self._kept = target, 1.0 / (1.0 + share)
        self._state = _State(0.0, 0.0, 0.0, math.log(start))

    @property
    def shift(self) -> float | None:
        """The estimate of the shift, nats a prompt token; ``None`` before anything is drawn."""
        return self._state.nats / self._state.tokens if self._state.tokens else None

    @property
    def alpha(self) -> float:
        """The weight that the next step takes."""
        return math.exp(self._state.log_alpha + _PROPORTIONAL * _cut(self._state.violation, -1.0, 1.0))

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
        if self.shift is None:
            return
        before, state.violation = state.violation, self.shift / (self.target * (1.0 + left**3)) - 1.0
        error = _cut(state.violation, -1.0, 1.0)
        if error:
            staying = _cut(1.0 + _AHEAD * (state.violation - before) / state.violation, 0.0, 1.0)
            state.log_alpha = _cut(state.log_alpha + _INTEGRAL * left * staying * error, _LOWEST, _HIGHEST)

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
