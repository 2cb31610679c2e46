"""Factors that differ by group of modules: each group keeps as much of its update as it gains for what it forgets.

Near the base the distance KL(base ‖ tuned) grows with the square of a group's factor s and the gain with s itself, so
for groups that act apart ``Σ forgetting · s² - λ Σ gain · s`` is least at ``s = c · gain / forgetting``, with one c for
all. Both are measured by switching one group off at a time. Nothing is generated but the base's own answers, once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from selfaug.scaling.scales import Scales

__all__ = ["Group", "Probe", "graded", "greedy", "grouped", "within"]

_HALVINGS = 5


@dataclass(frozen=True)
class Probe:
    """Quick measurements of scaled weights, both in nats per token.

    Args:
        forgetting: KL(base ‖ tuned) on the base's own answers or on general texts.
        loss: NLL of accepted answers of the task.
    """

    forgetting: float
    loss: float


@dataclass(frozen=True)
class Group:
    """Modules that share a factor, and the part of the update's effect that goes with them.

    Args:
        name: Name of the group.
        modules: Names of its modules.
        forgetting: Forgetting that switching the group off takes away, in nats per token.
        gain: Rise of the task's NLL when the group is switched off, in nats per token.
    """

    name: str
    modules: tuple[str, ...]
    forgetting: float = 0.0
    gain: float = 0.0


def grouped(modules: Sequence[str], most: int) -> list[Group]:
    """Return the modules by their parents, such as attention and MLP of a layer, in at most so many groups.

    Where there are more, modules are grouped by layer, then by several neighbouring layers.
    """
    found: dict[str, list[str]] = {}
    for level in (lambda name: name.rpartition(".")[0], _layer):
        found = {}
        for module in modules:
            found.setdefault(level(module), []).append(module)
        if len(found) <= most:
            return [Group(name, tuple(members)) for name, members in found.items()]
    names = sorted(found, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
    size = -(-len(names) // most)
    return [
        Group(f"{chunk[0]} to {chunk[-1]}" if len(chunk) > 1 else chunk[0], tuple(m for n in chunk for m in found[n]))
        for chunk in (names[start : start + size] for start in range(0, len(names), size))
    ]


def _layer(module: str) -> str:
    """Return a module's name up to its first number, its layer's; without a number its parent's."""
    match = re.match(r".*?\.\d+(?=\.|$)", module)
    return match[0] if match else module.rpartition(".")[0]


def graded(groups: Sequence[Group], top: float, strength: float) -> dict[str, float]:
    """``s = min(top, strength · gain / forgetting)`` for each module of a group.

    A group that forgets nothing keeps ``top``, and one that forgets and gains nothing gets 0.
    """
    factors: dict[str, float] = {}
    for group in groups:
        factor = top
        if group.forgetting > 0:
            factor = min(top, strength * max(group.gain, 0.0) / group.forgetting)
        factors |= dict.fromkeys(group.modules, factor)
    return factors


def greedy(groups: Sequence[Group], top: float, share: float) -> dict[str, float]:
    """Return ``top`` for each module, but 0 in a share of the groups, those that forget most for what they gain."""
    worst = sorted(groups, key=_ratio, reverse=True)
    off = round(share * len(worst))
    return {m: 0.0 if n < off else top for n, group in enumerate(worst) for m in group.modules}


def _ratio(group: Group) -> float:
    if group.forgetting <= 0:
        return -1.0
    return group.forgetting / group.gain if group.gain > 0 else float("inf")


def within(
    path: Callable[[float], Mapping[str, float]],
    low: float,
    high: float,
    budget: float,
    label: str,
    probe: Callable[[Scales], Probe],
) -> tuple[Scales, Probe] | None:
    """Return the weights nearest to ``high`` on a path of factors whose forgetting is within a budget.

    Args:
        path: Function from a number to the factor of each module.
        low: Number at which the factors are small.
        high: Number at which they are large.
        budget: Largest forgetting, in nats per token.
        label: Name of the weights.
        probe: Function that measures weights.

    Returns:
        The best weights found by halving the interval, with their probe; ``None`` where all exceed the budget.
    """
    best = None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        scales = Scales(label, path(middle))
        found = probe(scales)
        if found.forgetting <= budget:
            best, low = (scales, found), middle
        else:
            high = middle
    return best
