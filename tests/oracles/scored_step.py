"""The adapter gradient of a step whose response tokens are weighted by their NLL under the base.

    loss = sum_seq sum_t w(seq, t) nll(t) / n        n: number of response tokens of weight above 0

    stm    w = 1 where exp(nll_base(t)) <= limit, else 0
    flow   w = exp(-l / tau) / c, l the mean nll_base of the sequence's response, tau the median of the l of all
           sequences of the data, c the mean weight over all response tokens of the data

One unpadded sequence at a time; base and tuned are two separately loaded models; nothing is imported from the package.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch

from tests.models import adapter_name
from tests.oracles.step import Gradients, Sequence_, positions

Scores = list[list[float]]


def base_scores(base: torch.nn.Module, sequences: Sequence[Sequence_]) -> Scores:
    """Return the NLL in nats of each response token of each sequence."""
    scores = []
    for ids, labels in sequences:
        with torch.no_grad():
            log_p = base(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].log_softmax(-1)
        scores.append([-log_p[t, labels[t + 1]].item() for t in positions(labels, False).targets])
    return scores


def stm(scores: Scores, limit: float) -> Scores:
    return [[1.0 if math.exp(nll) <= limit else 0.0 for nll in row] for row in scores]


def flow(scores: Scores, tau: float | None = None) -> Scores:
    losses = [sum(row) / len(row) for row in scores if row]
    chosen = statistics.median(losses) if tau is None else tau
    raw = [[math.exp(-sum(row) / len(row) / chosen)] * len(row) for row in scores]
    mean = sum(map(sum, raw)) / sum(map(len, raw))
    return [[weight / mean for weight in row] for row in raw]


def scored_gradient(tuned: torch.nn.Module, sequences: Sequence[Sequence_], weights: Scores) -> tuple[float, Gradients]:
    """Return the loss and the gradient of every trainable parameter of ``tuned``."""
    count = sum(weight > 0 for row in weights for weight in row)
    tuned.zero_grad(set_to_none=True)
    total = 0.0
    for (ids, labels), row in zip(sequences, weights, strict=True):
        log_p = tuned(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].log_softmax(-1)
        targets = positions(labels, False).targets
        loss = -sum((w * log_p[t, labels[t + 1]] for t, w in zip(targets, row, strict=True)), start=0 * log_p.sum())
        (loss / count).backward()
        total += loss.item() / count
    gradients = {
        adapter_name(name): torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in tuned.named_parameters()
        if p.requires_grad
    }
    tuned.zero_grad(set_to_none=True)
    return total, gradients
