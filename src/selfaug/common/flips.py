"""Items that went from right to wrong or from wrong to right, and how many of them noise does not explain.

Noise (answers whose likeliest tokens nearly tie) flips items both ways alike: where base and tuned model answer an item
rightly with the same probability p, each direction has the probability p (1 - p), whatever p is. So of m flips by noise
Binomial(m, 1/2) are losses, and any surplus of one direction beyond that is the tuning's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from selfaug.common.statistics import CONFIDENCE, Items

__all__ = ["Flips", "beyond_noise", "flips"]


@dataclass(frozen=True)
class Flips:
    """Numbers of items that changed between right and wrong.

    Args:
        lost: Items that the base had right and the tuned model has wrong.
        gained: Items that the base had wrong and the tuned model has right.
        n: Items that count.
    """

    lost: int
    gained: int
    n: int

    @property
    def surely_lost(self) -> int:
        """Losses that noise does not explain, a lower bound."""
        return beyond_noise(self.lost, self.gained)

    @property
    def surely_gained(self) -> int:
        """Gains that noise does not explain, a lower bound."""
        return beyond_noise(self.gained, self.lost)

    def __add__(self, other: Flips) -> Flips:
        return Flips(self.lost + other.lost, self.gained + other.gained, self.n + other.n)


def flips(base: Items, tuned: Items) -> Flips | None:
    """Return the flips of a metric whose items are right (1) or wrong (0); ``None`` for any other metric."""
    counting = (base.denominator_n != 0) & (tuned.denominator_n != 0)
    right = []
    for items in (base, tuned):
        if not np.isin(items.denominator_n, (0, 1)).all() or not np.isin(items.numerator_n[counting], (0, 1)).all():
            return None
        right.append(items.numerator_n[counting] == 1)
    lost, gained = int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())
    return Flips(lost, gained, int(counting.sum()))


def beyond_noise(flipped: int, back: int, confidence: float = CONFIDENCE) -> int:
    """Return the smallest number x that noise allows: ``P(Binomial(flipped - x + back, 1/2) >= flipped - x) > tail``.

    Of ``flipped`` items at least x flipped by the tuning and not by noise, with a probability of an error of at most
    ``tail = (1 - confidence) / 2``. All flips ``back`` are taken as noise, so the bound is conservative where some of
    them are the tuning's, too.
    """
    from scipy.stats import binom  # type: ignore[import-untyped,unused-ignore]

    rest = np.arange(flipped, -1, -1)  # flips that are left to noise, for x = 0, 1, ...
    likely = binom.sf(rest - 1, rest + back, 0.5) > (1 - confidence) / 2
    return int(np.argmax(likely))
