"""How often do the intervals over few seeds hold the truth, and how often is a statement on dominance wrong?

    python benchmarks/coverage.py

Simulated runs on one test set of 60 items: a run's score at an item is the seed's effect, the item's, and what both do
together, all normal, with truth 0. `seeds`: the variance of the mean that is due to seeds, of all. The percentile
bootstrap (seeds, then items) is what `difference` did before. Dominance is simulated at the edge of what each
statement denies: a rival level on both axes among others far behind on one; rivals far ahead on one and level on the
other. The two standard deviations of a figure are 1.0 points (coverage) and 1.5 (dominance) at 5 %.
"""

from __future__ import annotations

import math

import numpy as np
from measure import table

from selfaug.common.statistics import Items, difference, two_way
from selfaug.study.dominance import LEVEL, dominance

ITEMS, TRIALS, RESAMPLES = 60, 2000, 400
SEEDS = (3, 4, 5)
SHARES = (1.0, 0.8, 0.5, 0.2, 0.0)


def scores(rng: np.random.Generator, runs: int, share: float) -> np.ndarray:
    """Scores (runs × items) whose mean has variance 1, of which seeds have `share`; items and both halve the rest."""
    of_seeds, of_items = math.sqrt(share * runs), math.sqrt((1 - share) / 2 * ITEMS)
    return (
        of_seeds * rng.standard_normal((runs, 1))
        + of_items * rng.standard_normal((1, ITEMS))
        + of_items * math.sqrt(runs) * rng.standard_normal((runs, ITEMS))
    )


def percentile_holds(rng: np.random.Generator, score_RN: np.ndarray) -> bool:
    """Whether the former interval, percentiles over resampled seeds and shared items, holds 0."""
    runs = len(score_RN)
    weight_bN = rng.multinomial(ITEMS, np.full(ITEMS, 1 / ITEMS), size=RESAMPLES) / ITEMS
    weight_bR = rng.multinomial(runs, np.full(runs, 1 / runs), size=RESAMPLES) / runs
    low, high = np.quantile(((weight_bN @ score_RN.T) * weight_bR).sum(axis=1), [0.025, 0.975])
    return bool(low <= 0 <= high)


def coverage(runs: int, share: float) -> tuple[float, float]:
    """Coverage of the percentile bootstrap and of `difference`."""
    rng = np.random.default_rng(1000 * runs + round(100 * share))
    zeros = Items(np.zeros(ITEMS), np.ones(ITEMS))
    held = [0, 0]
    for _ in range(TRIALS):
        score_RN = scores(rng, runs, share)
        held[0] += percentile_holds(rng, score_RN)
        found = difference([(zeros, Items(score_N, np.ones(ITEMS))) for score_N in score_RN], shared_items=True)
        assert found is not None
        assert found.interval is not None
        held[1] += found.interval[0] <= 0 <= found.interval[1]
    return held[0] / TRIALS, held[1] / TRIALS


def wrong(runs: int, rivals: int) -> tuple[float, float]:
    """How often 'no rival dominates' and 'this one dominates' are said wrongly, at the edge of what each denies."""
    rng = np.random.default_rng(runs * rivals)
    said = [0, 0]
    trials = TRIALS // 2
    for _ in range(trials):
        for which, first, others in ((0, (0.0, 0.0), (-50.0, 50.0)), (1, (50.0, 0.0), (50.0, 0.0))):
            truth = np.array([(0.0, 0.0), first, *[others] * (rivals - 1)])
            values = truth[:, :, None] + rng.standard_normal((len(truth), 2, runs)) + rng.standard_normal((1, 2, runs))
            gaps = {
                (i, 0): tuple(two_way(list(gap), []) for gap in values[i] - values[0]) for i in range(1, len(truth))
            }
            found = dominance(gaps)  # type: ignore[arg-type]
            assert found is not None
            beaten = any(pair.in_means and pair.p_dominates <= LEVEL for pair in found.pairs)
            said[which] += beaten if which else found.p_none <= LEVEL
    return said[0] / trials, said[1] / trials


def main() -> None:
    """Print both tables."""
    lines = []
    for runs in SEEDS:
        each = [coverage(runs, share) for share in SHARES]
        lines += [[str(runs), name, *(f"{one[i]:.3f}" for one in each)] for i, name in enumerate(("percentile", "t"))]
    print(table(["seeds", "interval", *(f"seeds {share:.0%}" for share in SHARES)], lines))
    print()
    lines = [
        [str(runs), str(rivals), *(f"{each:.3f}" for each in wrong(runs, rivals))]
        for runs in SEEDS
        for rivals in (1, 8)
    ]
    print(table(["seeds", "rivals", '"none dominates", wrongly', '"this one dominates", wrongly'], lines))


if __name__ == "__main__":
    main()
