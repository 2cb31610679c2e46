"""Metrics over items with standard errors, and intervals of their paired differences over items and runs.

Every metric is a ratio of sums over items, ``Σ numerator / Σ denominator``: accuracy (denominators 1), precision
(1 where the model abstained, else 0), nats per token (tokens). One estimator, one standard error and one bootstrap
serve all of them. Items are many, and resampled; runs (seeds) are few, and a percentile bootstrap of three to five is
too narrow, so their spread enters by Student's t (docs/compare.md has coverage figures). A metric that is no
such ratio, such as the expected calibration error (ECE), does not fit
:class:`Items` and has no interval: extend :func:`selfaug.evaluation.results.metric` for it.

Shapes: n items, R runs, b resamples of a block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CONFIDENCE", "LOOKS", "RESAMPLES", "Difference", "Estimate", "Items", "contribution", "difference", "interval",
    "ratios", "seed_noise", "standard_error", "two_way", "value",
]  # fmt: skip

RESAMPLES = 10_000
CONFIDENCE = 0.95
LOOKS = {1: 0.95, 2: 0.9706, 3: 0.9779, 4: 0.9818, 5: 0.9842}
"""Confidence of each interval, by the number of equally spaced looks, so that with 95 % all of them hold.

A test that may stop at each look may use these in place of 95 %. Source: Pocock 1977, Biometrika 64 (2), Table 1, whose
levels are 1 minus these.
"""
_BLOCK_DRAWS = 2**19  # draws in memory at once: 4 MiB of indices, and as much for each of the sums

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Items:
    """A metric's numerators and denominators, item by item, in the same order for base and tuned model.

    Args:
        numerator_n: Numerator of each item.
        denominator_n: Denominator of each item; 0 for an item that does not count.
    """

    numerator_n: Floats
    denominator_n: Floats

    @classmethod
    def of(cls, values: Sequence[float | Sequence[float] | None]) -> Items:
        """Make items from values of a sample log: a number (denominator 1), a pair, or ``None`` (not counted)."""
        pairs = [
            (0.0, 0.0) if v is None else (float(v[0]), float(v[1])) if isinstance(v, Sequence) else (float(v), 1.0)
            for v in values
        ]
        table = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
        return cls(table[:, 0].copy(), table[:, 1].copy())

    @property
    def count(self) -> int:
        """Number of items that count."""
        return int(np.count_nonzero(self.denominator_n))


@dataclass(frozen=True)
class Difference:
    """The difference of a metric, tuned minus base.

    Args:
        value: Difference; the mean over several runs.
        stderr: Standard error; ``None`` with fewer than two items.
        interval: Confidence interval; ``None`` with fewer than two items, or where more than 1 % of the resamples have
            a denominator of 0.
    """

    value: float
    stderr: float | None
    interval: tuple[float, float] | None


def value(items: Items) -> float | None:
    """Return ``Σ numerator / Σ denominator``; ``None`` where no item counts."""
    total = math.fsum(items.denominator_n)
    return math.fsum(items.numerator_n) / total if total else None


def standard_error(items: Items) -> float | None:
    """Return ``sqrt(n / (n - 1) · Σ (numerator - value · denominator)²) / Σ denominator`` over the n items that count.

    With denominators of 1 this is the sample standard deviation over √n, otherwise the usual linearisation of a ratio.
    With fewer than two items it is ``None``.
    """
    ratio, n = value(items), items.count
    if ratio is None or n < 2:
        return None
    residual_n = items.numerator_n - ratio * items.denominator_n
    spread = math.sqrt(math.fsum(residual_n**2) * n / (n - 1))
    return spread / math.fsum(items.denominator_n)


def difference(
    runs: Sequence[tuple[Items, Items]],
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    shared_items: bool = False,
) -> Difference | None:
    """Return ``mean over runs of (value(tuned) - value(base))`` with a paired interval over items and runs.

    One run: percentiles of a bootstrap over items, the same for base and tuned; the error is their standard deviation.

    Several runs: ``mean ± t · sqrt(v_runs + v_items)``, Student's t with Satterthwaite's degrees of freedom. ``v_runs``
    is the variance of the runs' differences over their number, ``v_items`` that of the items' contributions (each
    ratio linearised, the mean over runs) over theirs. What is due to item and run together is in both, so the interval
    is rather too wide. With ``shared_items=False`` ``v_runs`` has the items in it, and counts alone unless it is less
    than they are by themselves.

    Args:
        runs: Items ``(base, tuned)`` of each run.
        resamples: Number of resamples of the items of one run.
        confidence: Confidence of the interval, in (0, 1).
        seed: Seed of the resamples.
        shared_items: Whether the runs were measured on the same items in the same order (one test set, several training
            seeds). If so, more runs do not average out the variation that is due to the items.

    Returns:
        The difference, or ``None`` where a run has no item that counts.

    Raises:
        ValueError: If base and tuned have different lengths, or ``shared_items`` and runs differ in theirs.
    """
    if any(base.numerator_n.shape != tuned.numerator_n.shape for base, tuned in runs):
        raise ValueError("base and tuned must hold the same items")
    lengths = {len(base.numerator_n) for base, _ in runs}
    if shared_items and len(lengths) > 1:
        raise ValueError(f"runs on the same items have different numbers of them: {sorted(lengths)}")
    values = [(value(tuned), value(base)) for base, tuned in runs]
    if not values or any(t is None or b is None for t, b in values):
        return None
    observed = math.fsum((t or 0.0) - (b or 0.0) for t, b in values) / len(values)
    if min(min(base.count, tuned.count) for base, tuned in runs) < 2:
        return Difference(observed, None, None)
    if len(runs) > 1:
        return _of_runs([(t or 0.0) - (b or 0.0) for t, b in values], runs, confidence, shared_items)
    drawn = _resampled(runs[0], resamples, np.random.default_rng(seed))
    bounds = interval(drawn, (1 - confidence) / 2)
    stderr = None if bounds is None else float(drawn[np.isfinite(drawn)].std(ddof=1))
    return Difference(observed, stderr, bounds)


def interval(drawn_b: Floats, tail: float = (1 - CONFIDENCE) / 2) -> tuple[float, float] | None:
    """Return the percentiles of resampled values that leave a share of ``tail`` below and above.

    The result is ``None`` where more than 1 % of the values are not finite, having a denominator of 0.
    """
    finite_b = drawn_b[np.isfinite(drawn_b)]
    if len(finite_b) < 0.99 * len(drawn_b):
        return None
    low, high = np.quantile(finite_b, [tail, 1 - tail])
    return float(low), float(high)


def ratios(items: Items, index_bn: NDArray[np.int64]) -> Floats:
    """Return ``Σ numerator / Σ denominator`` of each resample (a row of ``index_bn``); not finite over 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio_b: Floats = items.numerator_n[index_bn].sum(axis=1) / items.denominator_n[index_bn].sum(axis=1)
    return ratio_b


def _of_runs(
    values: Sequence[float], runs: Sequence[tuple[Items, Items]], confidence: float, shared: bool
) -> Difference:
    """Return the mean over runs with Student's interval: see :func:`difference`."""
    from scipy.stats import t  # type: ignore[import-untyped,unused-ignore]

    count = len(runs)
    contributions = [contribution(tuned) - contribution(base) for base, tuned in runs]
    if shared:
        found = two_way(values, [np.mean(contributions, axis=0)])
    else:
        # Each run has items of its own, so what differs between runs has the items' share in it already.
        by_runs = two_way(values, [])
        parts = [(_of_mean(n) / count**2, len(n) - 1) for n in contributions]
        by_items = math.sqrt(math.fsum(part for part, _ in parts))
        found = max(by_runs, Estimate(by_runs.value, by_items, _freedom(parts)), key=lambda one: one.stderr)
    reach = float(t.ppf((1 + confidence) / 2, found.freedom)) * found.stderr if found.stderr else 0.0
    return Difference(found.value, found.stderr, (found.value - reach, found.value + reach))


@dataclass(frozen=True)
class Estimate:
    """A mean over runs, for Student's t.

    Args:
        value: Mean.
        stderr: Standard error.
        freedom: Degrees of freedom.
    """

    value: float
    stderr: float
    freedom: float

    def turned(self) -> Estimate:
        """Return the estimate with its sign turned."""
        return Estimate(-self.value, self.stderr, self.freedom)


def two_way(values: Sequence[float], parts: Sequence[Floats]) -> Estimate:
    """``mean(values) ± sqrt(v_runs + v_items)`` with Satterthwaite's degrees of freedom.

    Args:
        values: Value of each run; with one run ``v_runs`` is not known, and left out.
        parts: Contributions of the items, means over runs, of each part whose mean the value is.
    """
    sums = [(float(np.var(values, ddof=1)) / len(values), len(values) - 1)] if len(values) > 1 else []
    sums += [(_of_mean(n) / len(parts) ** 2, len(n) - 1) for n in parts]
    stderr = math.sqrt(math.fsum(part for part, _ in sums))
    return Estimate(math.fsum(values) / len(values), stderr, _freedom(sums))


def _of_mean(values: Floats) -> float:
    return float(np.var(values, ddof=1)) / len(values)


def contribution(items: Items) -> Floats:
    """``n · (numerator - value · denominator) / Σ denominator``: what each item adds to the ratio, with mean 0."""
    ratio = value(items) or 0.0
    total = math.fsum(items.denominator_n)
    return len(items.numerator_n) * (items.numerator_n - ratio * items.denominator_n) / total


def _freedom(parts: Sequence[tuple[float, int]]) -> float:
    """``(Σ v)² / Σ v² / ν``: the degrees of freedom of a sum of variances.

    Source: Satterthwaite 1946, as in Welch's test.
    """
    total = math.fsum(part for part, _ in parts)
    return total**2 / math.fsum(part**2 / nu for part, nu in parts) if total else math.inf


def _resampled(run: tuple[Items, Items], resamples: int, rng: np.random.Generator) -> Floats:
    base, tuned = run
    n = len(base.numerator_n)
    size = max(1, _BLOCK_DRAWS // n)
    blocks = []
    for start in range(0, resamples, size):
        index_bn = rng.integers(n, size=(min(size, resamples - start), n))
        with np.errstate(invalid="ignore"):
            blocks.append(ratios(tuned, index_bn) - ratios(base, index_bn))
    return np.concatenate(blocks)


def seed_noise(deviations_R: Sequence[Floats], draws: int, rng: np.random.Generator) -> list[Floats]:
    """Return draws of the error of each mean over runs, jointly for all of them.

    ``Σ_r z_r · deviation_r / sqrt(R · (R - 1)) / sqrt(χ²(R - 1) / (R - 1))`` with standard normal z: of one mean this
    is Student's t with R - 1 degrees of freedom, times the standard error. The z of a run are those of all means, so
    that means over the same runs are compared in pairs.

    Args:
        deviations_R: Deviations of each run from the mean over runs; NaN where a run is missing. All have as many runs.
        draws: Number of draws.
        rng: Generator.

    Returns:
        Draws for each entry; 0 for a mean over one run, whose spread is not known.
    """
    if not deviations_R:
        return []
    runs = len(deviations_R[0])
    normal_bR = rng.standard_normal((draws, runs))
    uniform_b = rng.uniform(size=draws)
    scale: dict[int, Floats] = {}
    found = []
    for deviation_R in deviations_R:
        here = np.isfinite(deviation_R)
        count = int(here.sum())
        if count < 2:
            found.append(np.zeros(draws))
            continue
        if count not in scale:  # one uniform for all counts, so that a bad draw is bad for all means
            from scipy.stats import chi2

            scale[count] = np.sqrt(chi2.ppf(uniform_b, count - 1) / (count - 1)) * math.sqrt(count * (count - 1))
        found.append(normal_bR[:, here] @ deviation_R[here] / scale[count])
    return found
