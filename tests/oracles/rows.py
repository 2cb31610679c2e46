"""The row terms, values and gradients, written out in floats.

The definitions, for one row with tuned logits z, reference logits r, q = softmax(z), p = softmax(r), all in nats:

    nll            = -log q[y]                              d/dz_i = q_i - [i = y]
    base_to_tuned  = KL(p || q) = sum p (log p - log q)     d/dz_i = q_i - p_i
    tuned_to_base  = KL(q || p) = sum q (log q - log p)     d/dz_i = q_i (log q_i - log p_i - KL(q || p))
    jsd            = KL(p || m)/2 + KL(q || m)/2, m = (p + q)/2
                                                            d/dz_i = q_i (g_i - sum_j q_j g_j), g = log(q/m)/2

Lists of Python floats, loops and `math` only; nothing is imported from the package, and no tensor library is used. A
logit of minus infinity has probability 0, and 0 log 0 = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

Row = Sequence[float]
DIRECTIONS = ("base_to_tuned", "tuned_to_base", "jsd")


class Term(NamedTuple):
    """A value in nats and its gradient with respect to the row's logits."""

    value: float
    dlogits: list[float]


class HeadGradient(NamedTuple):
    """The gradient of one row's value with respect to hidden state, weight and bias."""

    hidden: list[float]
    weight: list[list[float]]
    bias: list[float]


def log_softmax(logits: Row) -> list[float]:
    """Return log softmax(z)_i = z_i - log sum_j exp(z_j)."""
    top = max(logits)
    log_sum = top + math.log(math.fsum(math.exp(z - top) for z in logits))
    return [z - log_sum for z in logits]


def softmax(logits: Row) -> list[float]:
    return [math.exp(log_q) for log_q in log_softmax(logits)]


def nll(logits: Row, label: int) -> Term:
    log_q = log_softmax(logits)
    gradient = [math.exp(value) - (1.0 if i == label else 0.0) for i, value in enumerate(log_q)]
    return Term(-log_q[label], gradient)


def base_to_tuned(logits: Row, reference: Row) -> Term:
    log_q, log_p = log_softmax(logits), log_softmax(reference)
    gradient = [math.exp(b) - math.exp(a) for a, b in zip(log_p, log_q, strict=True)]
    return Term(divergence(log_p, log_q), gradient)


def tuned_to_base(logits: Row, reference: Row) -> Term:
    log_q, log_p = log_softmax(logits), log_softmax(reference)
    value = divergence(log_q, log_p)
    gradient = [math.exp(b) * (b - a - value) if b > -math.inf else 0.0 for a, b in zip(log_p, log_q, strict=True)]
    return Term(value, gradient)


def jsd(logits: Row, reference: Row) -> Term:
    log_q, log_p = log_softmax(logits), log_softmax(reference)
    log_m = [_log_mean(a, b) for a, b in zip(log_p, log_q, strict=True)]
    value = 0.5 * divergence(log_p, log_m) + 0.5 * divergence(log_q, log_m)
    slope = [0.5 * (b - m) if b > -math.inf else 0.0 for b, m in zip(log_q, log_m, strict=True)]
    mean_slope = math.fsum(math.exp(b) * g for b, g in zip(log_q, slope, strict=True))
    gradient = [math.exp(b) * (g - mean_slope) for b, g in zip(log_q, slope, strict=True)]
    return Term(value, gradient)


def alignment(direction: str, logits: Row, reference: Row) -> Term:
    """Return the alignment term of ``direction``."""
    terms: dict[str, Callable[[Row, Row], Term]] = {
        "base_to_tuned": base_to_tuned,
        "tuned_to_base": tuned_to_base,
        "jsd": jsd,
    }
    return terms[direction](logits, reference)


def divergence(log_p: Row, log_q: Row) -> float:
    """Return KL(p || q) from log probabilities; infinite where p has mass and q has none."""
    parts = []
    for a, b in zip(log_p, log_q, strict=True):
        if a == -math.inf:
            continue
        if b == -math.inf:
            return math.inf
        parts.append(math.exp(a) * (a - b))
    return math.fsum(parts)


def entropy(logits: Row) -> float:
    """Return -sum q log q in nats, in [0, log V]."""
    return -math.fsum(math.exp(value) * value for value in log_softmax(logits) if value > -math.inf)


def top1(logits: Row) -> int:
    """Return the index of the largest logit, the first of equal ones."""
    return max(range(len(logits)), key=lambda i: (logits[i], -i))


def head_logits(
    hidden: Row, weight: Sequence[Row], bias: Row | None = None, scale: float = 1.0, soft_cap: float | None = None
) -> list[float]:
    """Return z = c·tanh(s·(W h + b)/c), W of V rows and H columns; without a soft cap, z = s·(W h + b).

    The order is that of transformers: Cohere multiplies the head's output by ``logit_scale``, Granite divides it by
    ``logits_scaling``, Falcon-H1 multiplies it by ``lm_head_multiplier``; Gemma 2 caps the result.
    """
    logits = []
    for v, row in enumerate(weight):
        u = math.fsum(w * h for w, h in zip(row, hidden, strict=True)) + (bias[v] if bias is not None else 0.0)
        u *= scale
        logits.append(u if soft_cap is None else soft_cap * math.tanh(u / soft_cap))
    return logits


def head_gradient(
    dlogits: Row,
    hidden: Row,
    weight: Sequence[Row],
    bias: Row | None = None,
    scale: float = 1.0,
    soft_cap: float | None = None,
) -> HeadGradient:
    """Apply the chain rule through ``head_logits``: dz/du = (1 - tanh²(s·u/c))·s, u = W h + b."""
    logits = head_logits(hidden, weight, bias, scale, soft_cap)
    slope = [scale * (1.0 if soft_cap is None else 1.0 - (z / soft_cap) ** 2) for z in logits]
    du = [d * s for d, s in zip(dlogits, slope, strict=True)]
    dhidden = [math.fsum(du[v] * weight[v][h] for v in range(len(weight))) for h in range(len(hidden))]
    return HeadGradient(dhidden, [[d * h for h in hidden] for d in du], du)


def _log_mean(a: float, b: float) -> float:
    """Return log((exp a + exp b)/2)."""
    high, low = max(a, b), min(a, b)
    if high == -math.inf:
        return -math.inf
    return high + math.log1p(math.exp(low - high)) - math.log(2.0)
