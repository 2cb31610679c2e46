"""How often do the intervals over few seeds hold the truth, and how often is a statement on dominance wrong?

    python benchmarks/coverage.py

Simulated runs on one test set of 60 items: a run's score at an item is the seed's effect, the item's, and what both do
together, all normal, with truth 0. `seeds`: the variance of the mean that is due to seeds, of all. `percentile` is the
bootstrap (seeds, then items) that `difference` had before; `t` is what it has. Dominance is simulated at the edge of
what each statement denies: a rival level on both axes among others far behind on one; rivals far ahead on one and level
on the other. Two standard deviations of a figure at 5 % are 1.0 points (coverage) and 1.9 (dominance).
"""

from __future__ import annotations

import math

import numpy as np
from measure import table
from numpy.typing import NDArray
from scipy import stats

from selfaug.common.statistics import two_way
from selfaug.study.dominance import LEVEL, dominance

ITEMS, TRIALS, RESAMPLES = 60, 2000, 400
SEEDS = (3, 4, 5)
SHARES = (1.0, 0.8, 0.5, 0.2, 0.0)
Floats = NDArray[np.float64]


def scores(rng: np.random.Generator, runs: int, share: float) -> Floats:
    """Scores (trials × runs × items) whose mean has variance 1: `share` by seeds, half of the rest by items."""
    of_seeds, of_items = math.sqrt(share * runs), math.sqrt((1 - share) / 2 * ITEMS)
    return (
        of_seeds * rng.standard_normal((TRIALS, runs, 1))
        + of_items * rng.standard_normal((TRIALS, 1, ITEMS))
        + of_items * math.sqrt(runs) * rng.standard_normal((TRIALS, runs, ITEMS))
    )


def coverage(runs: int, share: float) -> tuple[float, float]:
    """Coverage of the former interval (percentiles over resampled seeds and shared items) and of Student's."""
    rng = np.random.default_rng(1000 * runs + round(100 * share))
    score_TRN = scores(rng, runs, share)
    weight_bN = rng.multinomial(ITEMS, np.full(ITEMS, 1 / ITEMS), size=RESAMPLES) / ITEMS
    weight_bR = rng.multinomial(runs, np.full(runs, 1 / runs), size=RESAMPLES) / runs
    drawn_Tb = ((score_TRN @ weight_bN.T) * weight_bR.T).sum(axis=1)
    low_T, high_T = np.quantile(drawn_Tb, [0.025, 0.975], axis=1)
    found = [two_way(score_RN.mean(axis=1), [score_RN.mean(axis=0)]) for score_RN in score_TRN]
    reach_T = stats.t.ppf(0.975, [one.freedom for one in found]) * [one.stderr for one in found]
    percentile = ((low_T <= 0) & (high_T >= 0)).mean()
    return float(percentile), float((np.abs([one.value for one in found]) <= reach_T).mean())


def wrong(runs: int, rivals: int) -> tuple[float, float]:
    """How often 'no rival dominates' and 'this one dominates' are said wrongly, at the edge of what each denies."""
    rng = np.random.default_rng(runs * rivals)
    said = [0, 0]
    trials = TRIALS // 4
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
