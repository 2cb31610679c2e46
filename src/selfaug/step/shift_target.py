"""The weight α of the alignment that brings the shift on prompts to a target: a constrained problem, solved on the way.

    minimise NLL   subject to   shift = E[KL(base ‖ tuned)] <= target      (nats a prompt token)

α is the multiplier of the constraint. It follows the sums and counts that a step has anyway: no further pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from selfaug.common.errors import ConfigError

if TYPE_CHECKING:
    from selfaug.step.driver import StepDriver

__all__ = ["ShiftTarget", "check_target"]

_INTEGRAL, _PROPORTIONAL = 0.1, 0.6
"""Gains on log α: of a step at the full learning rate, and at once."""
_LOWEST, _HIGHEST = math.log(1e-3), math.log(1e3)
"""Bounds of the integral, log α at the target: where the constraint does not bind, α falls to (nearly) nothing."""
_FILE_KEY = "shift_target."


@dataclass
class _State:
    """The sums of the estimate, nats and tokens, and log α at the target."""

    nats: float
    tokens: float
    log_alpha: float


class ShiftTarget:
    """``log α = b + 0.6 e``, and after each step ``b ← b + 0.1 η e``, with ``e = shift / target - 1`` cut to [-1, 1].

    η is the learning rate as a share of its highest: where the weights hardly move any more, α can do nothing about the
    shift, and an integral that went on would only leave the weight that the training needs.

    The shift is the ratio ``S / N`` of two decaying sums over steps, micro-batches and ranks: ``S ← k S + Σ_drawn kl``,
    ``N ← k N + n_drawn``. Both have the same chance of a draw, so the ratio needs no divisor, is consistent under any
    draw, weighs a step by the tokens that it drew, and stays where nothing is drawn. With ``k = 1 / (1 + f)`` it spans
    (1 + f) / f steps, some two of whole batches, nine at f = 1/8.

    The proportional part lets α follow the shift as it rises to the target, before the integral has moved, which is
    what an integral alone lacks: it overshoots. Errors are relative and α is changed by factors, so that neither
    the scale of the target nor that of α matters.

    Source: the proportional-integral multiplier of Stooke et al., arXiv 2007.03964, there on the multiplier itself.
    Differences: its logarithm, η, the estimate, and no derivative.

    Args:
        target: Shift in nats a prompt token, above 0.
        start: α at the target before anything is known, above 0.
        share: Probability f in (0, 1] that an aligned token is drawn.
    """

    def __init__(self, target: float, start: float, share: float = 1.0) -> None:
        self.target, self._kept = target, 1.0 / (1.0 + share)
        self._state = _State(0.0, 0.0, math.log(start))

    @property
    def shift(self) -> float | None:
        """The estimate of the shift, nats a prompt token; ``None`` before anything is drawn."""
        return self._state.nats / self._state.tokens if self._state.tokens else None

    @property
    def alpha(self) -> float:
        """The weight that the next step takes."""
        return math.exp(self._state.log_alpha + _PROPORTIONAL * self._violation())

    def follow(self, driver: StepDriver, optimizer: Any) -> None:
        """Update α by the step that the driver has just computed, for its next one. Every rank must call this."""
        group = optimizer.param_groups[0]
        highest = group.get("initial_lr", group["lr"])  # noted by torch's schedulers
        self.update(*driver.step_shift(), group["lr"] / highest if highest else 1.0)
        self.apply(driver)

    def apply(self, driver: StepDriver) -> None:
        """Give the driver's alignment the weight α."""
        driver.objective.reweight("alignment", self.alpha)

    def logs(self) -> dict[str, float]:
        """Return what is logged: ``alpha`` of the next step, and ``shift``, its estimate where there is one."""
        return {"alpha": self.alpha} | ({} if self.shift is None else {"shift": self.shift})

    def update(self, nats: float, tokens: int, rate: float) -> None:
        """Take a step's sum of the KL over drawn tokens of all ranks, their number, and the share of its rate, η."""
        state = self._state
        state.nats, state.tokens = self._kept * state.nats + nats, self._kept * state.tokens + tokens
        moved = state.log_alpha + _INTEGRAL * rate * self._violation()
        state.log_alpha = min(max(moved, _LOWEST), _HIGHEST)

    def _violation(self) -> float:
        shift = self.shift
        return 0.0 if shift is None else min(max(shift / self.target - 1.0, -1.0), 1.0)

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
