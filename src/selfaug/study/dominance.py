"""Does any rival dominate a method? One statement over all pairs of settings, with its error rate.

A rival *dominates* a setting where it is at least as good on both axes. Two questions, each at a level of 5 % over all
pairs together:

- **none does**: every pair must show that the setting is ahead on an axis. Its p-value is the largest of the pairs', of
  which none needs a correction (an intersection-union test, Berger 1982);
- **this one does**: the rival must be ahead on both axes by more than the largest error over all pairs and axes
  (max-T, Westfall and Young 1993).

Errors are those of joint draws, so that what all settings share is not counted.

Letters: b draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEVEL", "Dominance", "Pair", "dominance"]

LEVEL = 0.05
"""Error rate of each statement."""

Floats = NDArray[np.float64]
Name = TypeVar("Name")


@dataclass(frozen=True)
class Pair(Generic[Name]):
    """A rival's setting beside one of the method's own.

    Args:
        rival: Setting of a rival.
        own: Setting of the method.
        in_means: Whether the rival is at least as good on both axes in the means, and better on one.
        p_dominates: Adjusted p-value of the rival's being better on both axes.
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


def dominance(
    own: Mapping[Name, tuple[Floats, Floats]], rivals: Mapping[Name, tuple[Floats, Floats]]
) -> Dominance[Name] | None:
    """Compare every rival setting with every own one.

    Args:
        own: Scores (2; higher is better) and their draws (2 × b) of each setting of the method.
        rivals: The same of the rivals' settings, drawn jointly with the own ones.

    Returns:
        The pairs, or ``None`` without any.
    """
    names = [(rival, mine) for rival in rivals for mine in own]
    if not names:
        return None
    gap_P2 = np.array([rivals[rival][0] - own[mine][0] for rival, mine in names])
    error_P2b = np.array([rivals[rival][1] - own[mine][1] for rival, mine in names]) - gap_P2[:, :, None]
    scale_P2 = np.abs(error_P2b).mean(axis=2)  # Student's t with two degrees of freedom has no standard deviation
    error_P2b = _over(error_P2b, scale_P2[:, :, None])
    ahead_P2 = _over(gap_P2, scale_P2)
    draws = error_P2b.shape[2]
    behind_Pb, largest_b = (-error_P2b).max(axis=1), error_P2b.max(axis=(0, 1))
    p_free = (1 + (behind_Pb >= (-ahead_P2).max(axis=1)[:, None]).sum(axis=1)) / (1 + draws)
    p_dominates = (1 + (largest_b >= ahead_P2.min(axis=1)[:, None]).sum(axis=1)) / (1 + draws)
    in_means = (gap_P2 >= 0).all(axis=1) & (gap_P2 > 0).any(axis=1)
    return Dominance(
        tuple(
            Pair(rival, mine, bool(in_means[i]), float(p_dominates[i]), float(p_free[i]))
            for i, (rival, mine) in enumerate(names)
        )
    )


def _over(values: Floats, scale: Floats) -> Floats:
    """``values / scale``, where what never varies is infinitely far from 0 unless it is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = np.where(values == 0, 0.0, values / scale)
    return found
