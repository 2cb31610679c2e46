"""Successive halving over learning rates and weights of the alignment: rungs of ever fewer and longer runs.

Every rung takes the same number of optimiser steps: all candidates for few steps each, the best third of them for three
times as many, until one is left. Each run is trained anew, since its learning rate falls to 0 at its own end.

Source: successive halving (Jamieson and Talwalkar, arXiv 1502.07943) with a third kept in place of a half.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfaug.common.errors import ConfigError
from selfaug.report.training import read_log
from selfaug.run.folder import RunFolder
from selfaug.study.grid import Run, Setting, fingerprint

__all__ = ["LEAST_STEPS", "Candidate", "Found", "Rung", "best", "candidates", "found_in", "rungs"]

LEAST_STEPS = 5
"""Steps of the shortest run; of fewer nothing can be told."""
_KEPT = 3


@dataclass(frozen=True)
class Candidate:
    """Learning rate and weight α of the alignment of a run."""

    rate: float
    alpha: float


@dataclass(frozen=True)
class Found:
    """What a run ended with.

    Args:
        before: NLL of the validation rows' responses before the first step, in nats a token.
        after: The same after the last step.
        shift: KL(base ‖ tuned) on the probe's answers after the last step, in nats a token.
    """

    before: float
    after: float
    shift: float

    def score(self, allowed: float) -> float:
        """``gain · min(1, √(allowed / shift))``: the gain that a factor on the update leaves at the allowed shift.

        Near the base the shift grows with the square of a factor on the update, and the gain with the factor itself.

        Args:
            allowed: Shift in nats a token, above 0.

        Returns:
            Nats a response token; the gain itself where it is negative.
        """
        gain = self.before - self.after
        return gain * min(1.0, math.sqrt(allowed / self.shift)) if gain > 0 and self.shift > 0 else gain


@dataclass(frozen=True)
class Rung:
    """Runs of equal length, which :func:`selfaug.study.run.run_all` trains.

    Args:
        candidates: Settings of the runs.
        steps: Optimiser steps of each.
        train: Arguments of `selfaug train` that all share.
        seed: Seed of all.
    """

    candidates: tuple[Candidate, ...]
    steps: int
    train: tuple[str, ...]
    seed: int

    def run(self, one: Candidate) -> Run:
        """Return the run of a candidate, evaluated before its first step and after its last."""
        also = (("learning_rate", one.rate), ("max_steps", self.steps))
        steps = str(self.steps)
        words = (
            *self.train, "--method", "selfaug", "--seed", str(self.seed), "--alpha", repr(one.alpha),
            "--learning_rate", repr(one.rate), "--max_steps", steps, "--eval_strategy", "steps", "--eval_steps", steps,
            "--eval_on_start", "true",
        )  # fmt: skip
        return Run(Setting("selfaug", "alpha", one.alpha, also), self.seed, words, also)

    def runs(self) -> list[Run]:
        """Return the runs."""
        return [self.run(one) for one in self.candidates]

    def fingerprints(self, run: Run) -> dict[str, str]:
        """Return the hash of what a run's weights depend on; nothing more is measured of it."""
        return {"train": fingerprint(run.train)}

    def measuring(self, run: Run, verb: str) -> tuple[str, ...]:
        """Return no arguments, as the log holds all measurements."""
        return ()


def candidates(rates: Sequence[float], alphas: Sequence[float]) -> tuple[Candidate, ...]:
    """Return every pair once: the first rate and the first weight, which are the defaults, come first."""
    return tuple(dict.fromkeys(Candidate(rate, alpha) for rate in rates for alpha in alphas))


def rungs(count: int, budget: int) -> list[tuple[int, int]]:
    """Return the number of runs of each rung, and the optimiser steps of each of them.

    Args:
        count: Number of candidates.
        budget: Optimiser steps of all runs together.

    Raises:
        ConfigError: If the first runs would have fewer than :data:`LEAST_STEPS`.
    """
    counts = [count]
    while counts[-1] > 1:
        counts.append(-(-counts[-1] // _KEPT))
    plan = [(one, budget // (len(counts) * one)) for one in counts]
    if plan[0][1] < LEAST_STEPS:
        needed = LEAST_STEPS * count * len(counts)
        raise ConfigError(
            f"budget_steps={budget} leaves {plan[0][1]} steps to each of the first {count} runs, of which nothing can "
            "be told",
            f"give {needed} or more, or fewer --rates and --alphas.",
        )
    return plan


def found_in(folder: Path) -> Found | None:
    """Return what the log of a finished run says; ``None`` where a number is missing or not finite."""
    events: Sequence[Mapping[str, Any]] = read_log(RunFolder(folder).log)
    nll = [event["eval_nll"] for event in events if event.get("eval_nll") is not None]
    shift = [event["probe_kl"] for event in events if event.get("probe_kl") is not None]
    numbers = (nll[0], nll[-1], shift[-1]) if len(nll) > 1 and shift else ()
    return Found(*numbers) if numbers and all(map(math.isfinite, numbers)) else None


def best(found: Mapping[Candidate, Found], count: int, allowed: float) -> tuple[Candidate, ...]:
    """Return the candidates that go on, those with the highest scores first.

    Args:
        found: What their runs ended with.
        count: Number that may go on.
        allowed: Shift that costs no score, in nats a token.
    """
    return tuple(sorted(found, key=lambda one: found[one].score(allowed), reverse=True)[:count])
