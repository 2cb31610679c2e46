"""The rivals' terms on a response token, values and gradients, written out in floats.

For one row with tuned logits z, q = softmax(z), reference p, gold token y:

    dft   w = q[y]^power
    eaft  w = (H / log K)^power, H the entropy of the K largest q, renormalised
    talr  w = max(q[y]^(1/tau), floor)
          value -w log q[y], d/dz_i = w (q_i - [i = y]): w has no gradient
    tmkl  sum_{i != y} p'_i (log p'_i - log q'_i), p'_i = p_i / (1 - p_y), q'_i = q_i / (1 - q_y)
          d/dz_i = q'_i - p'_i for i != y, 0 for y
    anchored  a_i = q_i^(1 - pull) p_i^pull / their sum, constant;  sum_i a_i (log a_i - log q_i)
          d/dz_i = q_i - a_i
    part  as the weighted ones, w = part

Lists, loops and `math` only; nothing is imported from the package.
"""

from __future__ import annotations

import math

from tests.oracles.rows import Row, Term, softmax


def dft(logits: Row, label: int, power: float = 1.0) -> Term:
    q = softmax(logits)
    return _weighted(q, label, q[label] ** power)


def eaft(logits: Row, label: int, top: int = 20, power: float = 1.0) -> Term:
    q = softmax(logits)
    largest = sorted(q, reverse=True)[:top]
    mass = math.fsum(largest)
    entropy = -math.fsum(x / mass * math.log(x / mass) for x in largest if x > 0)
    return _weighted(q, label, (entropy / math.log(len(largest))) ** power)


def talr(logits: Row, label: int, tau: float = 1.0, floor: float = 0.01) -> Term:
    q = softmax(logits)
    return _weighted(q, label, max(q[label] ** (1.0 / tau), floor))


def tmkl(logits: Row, reference: Row, label: int) -> Term:
    others = [i for i in range(len(logits)) if i != label]
    q = softmax([logits[i] for i in others])
    p = softmax([reference[i] for i in others])
    value = math.fsum(b * (math.log(b) - math.log(a)) for a, b in zip(q, p, strict=True) if b > 0)
    gradient = [0.0] * len(logits)
    for i, a, b in zip(others, q, p, strict=True):
        gradient[i] = a - b
    return Term(value, gradient)


def anchored(logits: Row, reference: Row, pull: float = 0.5) -> Term:
    q, p = softmax(logits), softmax(reference)
    # In logarithms: the powers of two very small numbers have a product of 0.
    logs = [(1 - pull) * _log(x) + pull * _log(y) for x, y in zip(q, p, strict=True)]
    most = max(logs)
    mass = math.fsum(math.exp(log - most) for log in logs)
    a = [math.exp(log - most) / mass for log in logs]
    value = math.fsum(x * (math.log(x) - math.log(y)) for x, y in zip(a, q, strict=True) if x > 0)
    return Term(value, [y - x for x, y in zip(a, q, strict=True)])


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf


def part_nll(logits: Row, label: int, part: float = 0.5) -> Term:
    return _weighted(softmax(logits), label, part)


def _weighted(q: Row, label: int, weight: float) -> Term:
    gradient = [weight * (x - (1.0 if i == label else 0.0)) for i, x in enumerate(q)]
    return Term(-weight * math.log(q[label]), gradient)
