"""Metrics over items with standard errors, and bootstrap intervals of their paired differences.

Every metric is a ratio of sums over items, ``Σ numerator / Σ denominator``: accuracy (denominators 1), precision
(1 where the model abstained, else 0), nats per token (tokens). One estimator, one standard error and one bootstrap
serve all of them. A metric that is no such ratio, such as the expected calibration error (ECE), does not fit
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
    "CONFIDENCE", "RESAMPLES", "Difference", "Items", "difference", "interval", "ratios", "standard_error", "value",
]  # fmt: skip

RESAMPLES = 10_000
CONFIDENCE = 0.95
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
        stderr: Standard deviation of the resampled differences; ``None`` with fewer than two items.
        interval: Percentiles of the resampled differences; ``None`` with fewer than two items, or where more than 1 %
            of the resamples have a denominator of 0.
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
    """Return ``mean over runs of (value(tuned) - value(base))`` with a paired, hierarchical bootstrap interval.

    A resample draws runs, then items of each drawn run, the same for base and tuned. With one run only items are drawn.

    Args:
        runs: Items ``(base, tuned)`` of each run.
        resamples: Number of resamples.
        confidence: Share of the resampled differences inside the interval, in (0, 1).
        seed: Seed of the draws.
        shared_items: Whether the runs were measured on the same items in the same order (one test set, several training
            seeds). If so, all runs of a resample share one draw of items; separate draws would average out the
            variation that is due to the items.

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
    drawn = _resampled(runs, resamples, np.random.default_rng(seed), shared_items)
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


def _resampled(
    runs: Sequence[tuple[Items, Items]], resamples: int, rng: np.random.Generator, shared_items: bool
) -> Floats:
    longest = max(len(base.numerator_n) for base, _ in runs)
    size = max(1, _BLOCK_DRAWS // longest)
    blocks = []
    for start in range(0, resamples, size):
        b = min(size, resamples - start)
        common = rng.integers(longest, size=(b, longest)) if shared_items else None
        chosen_bR = rng.integers(len(runs), size=(b, len(runs))) if len(runs) > 1 else None
        if chosen_bR is None:
            blocks.append(_one(runs[0], b, rng, common))
        elif shared_items:
            each_Rb = np.stack([_one(run, b, rng, common) for run in runs])
            blocks.append(np.take_along_axis(each_Rb.T, chosen_bR, axis=1).mean(axis=1))
        else:
            # A run that is drawn twice gets two draws of items.
            total = np.zeros(b)
            for slot in range(len(runs)):
                for r, run in enumerate(runs):
                    rows = np.flatnonzero(chosen_bR[:, slot] == r)
                    total[rows] += _one(run, len(rows), rng, None)
            blocks.append(total / len(runs))
    return np.concatenate(blocks)


def _one(run: tuple[Items, Items], b: int, rng: np.random.Generator, index_bn: NDArray[np.int64] | None) -> Floats:
    base, tuned = run
    n = len(base.numerator_n)
    if index_bn is None:
        index_bn = rng.integers(n, size=(b, n))
    with np.errstate(invalid="ignore"):
        return ratios(tuned, index_bn) - ratios(base, index_bn)
