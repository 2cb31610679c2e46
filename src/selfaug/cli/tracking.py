"""What was measured as named numbers for trackers: of an evaluation, of a gate, and of a finished training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfaug.report.gate import Check

__all__ = ["of_evaluation", "of_gate", "of_training"]


def of_evaluation(results: Mapping[str, Any]) -> dict[str, float]:
    """Return base, tuned, gain with its bounds, items, and flips of every metric of the results."""
    from selfaug.report.gains import measured

    numbers: dict[str, float] = {}
    for one in measured(results, subtasks=False):
        named: dict[str, float | None] = {side: one.entry[side]["value"] for side in ("base", "tuned")}
        if one.gain is not None:
            named |= {"gain": one.gain.value, "gain_low": one.gain.low, "gain_high": one.gain.high, "n": one.gain.n}
        if one.flips is not None:
            named |= {"lost": one.flips.lost, "surely_lost": one.flips.surely_lost}
            named |= {"gained": one.flips.gained, "surely_gained": one.flips.surely_gained}
        numbers |= _present(f"{one.part}/{one.metric}", named)
    return numbers


def of_gate(exit_code: int, checks: Sequence[Check]) -> dict[str, float]:
    """Return the exit code (0 passed, 1 failed, 3 undecided), and of each check gain, bounds, floor and its code.

    Of two limits of one kind on one metric, such as by a group and by a pattern, the stricter one counts.
    """
    from selfaug.cli.gate import EXIT_CODES

    numbers: dict[str, float] = {"gate/exit_code": exit_code}
    for one in sorted(checks, key=lambda check: check.floor):
        named = {"exit_code": EXIT_CODES[one.verdict], "gain": one.gain.value, "gain_low": one.gain.low}
        named |= {"gain_high": one.gain.high, "at_least": one.floor}
        numbers |= _present(f"gate/{one.rule.kind}/{one.subject}", named)
    return numbers


def of_training(finished: Mapping[str, Any]) -> dict[str, float]:
    """Return the steps of the finished weights, and where the probe's limit was broken, if it was."""
    broken = finished.get("probe_limit_broken") or {}
    numbers: dict[str, float | None] = {"steps": finished["steps"]}
    numbers |= {f"probe_limit_broken_{name}": broken.get(name) for name in ("step", "probe_kl", "restored_step")}
    return _present("finished", numbers)


def _present(name: str, numbers: Mapping[str, float | None]) -> dict[str, float]:
    return {f"{name}/{what}": float(number) for what, number in numbers.items() if number is not None}
