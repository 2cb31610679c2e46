"""The row kernel in Triton: one program computes a row's log-sum-exp and values, and its gradient in place.

The formulas are those of `terms.py`, in float32. A row is read in tiles twice, or three times where the gradient
contains the value (tuned-to-base, Jensen-Shannon). Every lane keeps its own sums, which are added up once at the end.

Tuned and reference logits go through the same operations in the same order, so that equal models give exactly 0.

Letters: z tuned logits, r reference logits; p, q their softmax; lp, lq its logarithm; m the mean of p and q.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["row_kernel"]

_LOWEST = tl.constexpr(-3.4028234663852886e38)
# A masked entry (-inf) becomes a very small finite log-probability, as in terms.py: 0 · (-inf - -inf) would be NaN.
_LEAST = tl.constexpr(-3.4028234663852886e38 / 4)


@triton.jit
def _tanh(x):
    """Return tanh(x): near 0 by its series (relative error below 1e-8), where 1 - exp(-2x) would lose digits."""
    size = tl.abs(x)
    shrunk = tl.exp(-2.0 * size)
    far = (1.0 - shrunk) / (1.0 + shrunk)
    square = x * x
    near = x * (1.0 + square * (-1.0 / 3 + square * (2.0 / 15 + square * (-17.0 / 315 + square * (62.0 / 2835)))))
    return tl.where(size < 0.25, near, tl.where(x < 0, -far, far))


@triton.jit
def _load_logits(row, place, inside, scale, soft_cap, CAPPED: tl.constexpr):
    z = tl.load(row + place, mask=inside, other=0.0).to(tl.float32) * scale
    if CAPPED:
        z = soft_cap * _tanh(z / soft_cap)
    return tl.where(inside, z, float("-inf"))


@triton.jit
def _fold(z, top, total):
    """Add a tile to the running maximum and ``Σ exp(z - maximum)`` of each lane; NaN stays NaN."""
    other = tl.exp(-tl.abs(z - top))
    above = z > top
    return tl.where(above, z, top), tl.where(above, total * other + 1.0, total + other)


@triton.jit
def _log_sum(top, total):
    """Return the row's maximum and log-sum-exp over its lanes; a row of -inf gives -inf, so its softmax is NaN."""
    highest = tl.max(top, axis=0)
    return highest, highest + tl.log(tl.sum(total * tl.exp(top - highest), axis=0))


@triton.jit
def _log_softmax(z, log_sum):
    lp = z - log_sum
    return tl.where(lp < _LEAST, _LEAST, lp)  # maximum() would lose NaN


@triton.jit
def _over_mean(lp, lq):
    """Return ``log p - log m`` and ``log q - log m``, with ``log m = max(lp, lq) + log ½(1 + exp(-|lp - lq|))``.

    Near 0 the last logarithm is taken by its series (relative error below 1e-8); at 0 it is exactly 0.
    """
    gap = tl.abs(lp - lq)
    near = gap * (-0.5 + gap * (0.125 + gap * gap * (-1.0 / 192 + gap * gap * (1.0 / 2880))))
    far = tl.log(0.5 + 0.5 * tl.exp(-gap))
    down = tl.where(gap < 0.25, near, far)
    return tl.where(lp < lq, -gap, 0.0) - down, tl.where(lq < lp, -gap, 0.0) - down


@triton.jit
def _store_gradient(
    row, place, inside, z, p, slope, label, nll_share, alignment_share, scale, soft_cap,
    HAS_NLL: tl.constexpr, DIRECTION: tl.constexpr, SHARED: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """Store the row's gradient; ``slope`` is the alignment's, the NLL's is ``p - onehot(label)``."""
    if HAS_NLL:
        gradient = p - tl.where(place == label, 1.0, 0.0)
        if SHARED:
            gradient = gradient * nll_share
        if DIRECTION > 0:
            gradient = gradient + slope * alignment_share
    else:
        gradient = slope
    if CAPPED:
        part = z / soft_cap
        gradient = gradient * (1.0 - part * part)
    gradient = gradient * scale
    tl.store(row + place, gradient.to(row.dtype.element_ty), mask=inside)


@triton.jit
def row_kernel(
    projected, projected_stride, reference, reference_stride, labels, nll_shares, alignment_shares, results, count,
    vocabulary, scale, soft_cap, reference_scale, reference_soft_cap,
    HAS_NLL: tl.constexpr, DIRECTION: tl.constexpr, SHARED: tl.constexpr, GRADIENT: tl.constexpr,
    CAPPED: tl.constexpr, REFERENCE_CAPPED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Compute row ``program_id(0)``: its column of ``results`` (nll, entropy, correct, alignment) and its gradient."""
    n = tl.program_id(0)
    row = projected + n.to(tl.int64) * projected_stride
    reference_row = reference + n.to(tl.int64) * reference_stride
    lanes = tl.arange(0, TILE)

    label, label_z, nll_share, alignment_share = 0, 0.0, 1.0, 1.0
    if HAS_NLL:
        label = tl.load(labels + n)
        known = (label >= 0) & (label < vocabulary)
        # Read first, since the gradient is written over it.
        label_z = tl.load(row + tl.where(known, label, 0)).to(tl.float32) * scale
        if CAPPED:
            label_z = soft_cap * _tanh(label_z / soft_cap)
        label_z = tl.where(known, label_z, float("nan"))
    if SHARED:
        nll_share = tl.load(nll_shares + n)
        alignment_share = tl.load(alignment_shares + n)

    top = tl.full((TILE,), _LOWEST, tl.float32)
    total = tl.zeros((TILE,), tl.float32)
    reference_top = tl.full((TILE,), _LOWEST, tl.float32)
    reference_total = tl.zeros((TILE,), tl.float32)
    for start in range(0, vocabulary, TILE):
        place = start + lanes
        inside = place < vocabulary
        top, total = _fold(_load_logits(row, place, inside, scale, soft_cap, CAPPED), top, total)
        if DIRECTION > 0:
            r = _load_logits(reference_row, place, inside, reference_scale, reference_soft_cap, REFERENCE_CAPPED)
            reference_top, reference_total = _fold(r, reference_top, reference_total)
    highest, log_sum = _log_sum(top, total)
    reference_log_sum = log_sum
    if DIRECTION > 0:
        _highest, reference_log_sum = _log_sum(reference_top, reference_total)

    entropy = tl.zeros((TILE,), tl.float32)
    earlier = tl.zeros((TILE,), tl.int32)  # 1 where an entry before the label is the maximum too
    from_p = tl.zeros((TILE,), tl.float32)
    from_q = tl.zeros((TILE,), tl.float32)
    for start in range(0, vocabulary, TILE):
        place = start + lanes
        inside = place < vocabulary
        z = _load_logits(row, place, inside, scale, soft_cap, CAPPED)
        lp = _log_softmax(z, log_sum)
        p = tl.exp(lp)
        slope = p
        if HAS_NLL:
            entropy -= p * lp
            earlier = tl.maximum(earlier, ((z == highest) & (place < label)).to(tl.int32))
        if DIRECTION > 0:
            r = _load_logits(reference_row, place, inside, reference_scale, reference_soft_cap, REFERENCE_CAPPED)
            lq = _log_softmax(r, reference_log_sum)
            q = tl.exp(lq)
            if DIRECTION == 1:
                from_q += q * (lq - lp)
                slope = p - q
            elif DIRECTION == 2:
                from_p += p * (lp - lq)
            else:
                p_over_m, q_over_m = _over_mean(lp, lq)
                from_p += p * p_over_m
                from_q += q * q_over_m
        if GRADIENT and DIRECTION < 2:
            _store_gradient(
                row, place, inside, z, p, slope, label, nll_share, alignment_share, scale, soft_cap,
                HAS_NLL, DIRECTION, SHARED, CAPPED,
            )  # fmt: skip
    if HAS_NLL:
        tl.store(results + n, -_log_softmax(label_z, log_sum))
        tl.store(results + count + n, tl.sum(entropy, axis=0))
        most_likely = (label_z == highest) & (tl.max(earlier, axis=0) == 0)
        tl.store(results + 2 * count + n, most_likely.to(tl.float32))
    value_p = tl.sum(from_p, axis=0)
    if DIRECTION == 1:
        tl.store(results + 3 * count + n, tl.sum(from_q, axis=0))
    elif DIRECTION == 2:
        tl.store(results + 3 * count + n, value_p)
    elif DIRECTION == 3:
        tl.store(results + 3 * count + n, 0.5 * (value_p + tl.sum(from_q, axis=0)))

    if GRADIENT and DIRECTION >= 2:
        for start in range(0, vocabulary, TILE):
            place = start + lanes
            inside = place < vocabulary
            z = _load_logits(row, place, inside, scale, soft_cap, CAPPED)
            r = _load_logits(reference_row, place, inside, reference_scale, reference_soft_cap, REFERENCE_CAPPED)
            lp = _log_softmax(z, log_sum)
            lq = _log_softmax(r, reference_log_sum)
            p = tl.exp(lp)
            if DIRECTION == 2:
                slope = p * (lp - lq - value_p)
            else:
                p_over_m, q_over_m = _over_mean(lp, lq)
                slope = 0.5 * p * (p_over_m - value_p)
            _store_gradient(
                row, place, inside, z, p, slope, label, nll_share, alignment_share, scale, soft_cap,
                HAS_NLL, DIRECTION, SHARED, CAPPED,
            )  # fmt: skip
