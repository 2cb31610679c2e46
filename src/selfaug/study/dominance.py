"""Does any rival dominate a method? One statement over all pairs of settings, with its error rate.

A rival *dominates* a setting where it is at least as good on both axes. Two questions, each at a level of 5 % over all
pairs together, whatever the pairs have in common:

- **none does**: every pair must show that the setting is ahead on an axis. Its p-value is the largest of the pairs', of
  which none needs a correction, since all must hold (an intersection-union test, Berger 1982);
- **this one does**: the rival must be ahead on both axes, after Holm's correction over all pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from selfaug.common.statistics import Estimate

__all__ = ["LEVEL", "Dominance", "Pair", "dominance"]

LEVEL = 0.05
"""Error rate of each statement."""

Name = TypeVar("Name")


@dataclass(frozen=True)
class Pair(Generic[Name]):
    """A rival's setting beside one of the method's own.

    Args:
        rival: Setting of a rival.
        own: Setting of the method.
        in_means: Whether the rival is at least as good on both axes in the means, and better on one.
        p_dominates: p-value of the rival's being better on both axes, corrected for all pairs.
        p_free: p-value of the rival's being worse on an axis.
    """

    rival: Name
    own: Name
    in_means: bool
    p_dominates: float
    p_free: float


@dataclass(frozen=True)
class Dominance(Generic[Name]):
    """All pairs, and the statement that in none of them the rival dominates.

    Args:
        pairs: Every pair.
    """

    pairs: tuple[Pair[Name], ...]

    @property
    def p_none(self) -> float:
        """p-value of the statement that no rival dominates any setting."""
        return max(pair.p_free for pair in self.pairs)

    @property
    def nearest(self) -> Pair[Name]:
        """Pair that is the furthest from showing that the rival does not dominate."""
        return max(self.pairs, key=lambda pair: pair.p_free)


def dominance(gaps: Mapping[tuple[Name, Name], tuple[Estimate, Estimate]]) -> Dominance[Name] | None:
    """Compare settings of rivals with a method's own.

    Args:
        gaps: Differences rival minus own on both axes (more is better) by (rival, own).

    Returns:
        The pairs, or ``None`` without any.
    """
    if not gaps:
        return None
    above = {names: max(_above(gap) for gap in both) for names, both in gaps.items()}
    # Worse on one of two axes: Bonferroni's correction for the two.
    below = {names: min(1.0, 2 * min(_above(gap.turned()) for gap in both)) for names, both in gaps.items()}
    corrected: dict[tuple[Name, Name], float] = {}
    largest = 0.0
    for place, names in enumerate(sorted(above, key=lambda names: above[names])):
        largest = max(largest, min(1.0, (len(above) - place) * above[names]))
        corrected[names] = largest
    return Dominance(
        tuple(
            Pair(
                *names,
                all(gap.value >= 0 for gap in both) and any(gap.value > 0 for gap in both),
                corrected[names],
                below[names],
            )
            for names, both in gaps.items()
        )
    )


def _above(gap: Estimate) -> float:
    """Return the one-sided p-value of a difference above 0."""
    from scipy.stats import t  # type: ignore[import-untyped,unused-ignore]

    if not gap.stderr:
        return 0.0 if gap.value > 0 else 1.0
    return float(t.sf(gap.value / gap.stderr, gap.freedom)) if math.isfinite(gap.stderr) else 1.0
