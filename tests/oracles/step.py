"""The adapter gradient of one optimiser step, computed one unpadded sequence at a time.

    loss = sum_seq sum_t nll(t) / n_response + alpha · sum_{drawn seq} sum_t kl(t) / (f · n_aligned)

nll is summed over targets labels[t+1] != -100, of which there are n_response; kl over aligned positions, of which there
are n_aligned in *all* sequences of the step, drawn or not. A position t is aligned where labels[t] == labels[t+1] ==
-100, and with ``align_boundary`` also where labels[t] == -100 and labels[t+1] is a target. Base and tuned are two
separately loaded models; logits are dense; there is no batch, padding or attention mask, and nothing is imported from
the package.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tests.models import adapter_name
from tests.oracles import dense

IGNORED = -100
Sequence_ = tuple[list[int], list[int]]
Gradients = dict[str, Tensor]


@dataclass
class Positions:
    """The aligned and the trained positions of one sequence; t indexes the predicting token."""

    aligned: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)


def positions(labels: Sequence[int], align_boundary: bool) -> Positions:
    found = Positions()
    for t in range(len(labels) - 1):
        if labels[t + 1] != IGNORED:
            found.targets.append(t)
            if align_boundary and labels[t] == IGNORED:
                found.aligned.append(t)
        elif labels[t] == IGNORED:
            found.aligned.append(t)
    return found


def step_gradient(
    base_model_loader: Callable[[], torch.nn.Module],
    tuned_model: torch.nn.Module,
    sequences: Sequence[Sequence_],
    alpha: float,
    direction: str,
    align_boundary: bool,
    align_fraction: float = 1.0,
    drawn: Collection[int] | Mapping[int, Collection[int]] | None = None,
    find: Callable[[Sequence[int], bool], Positions] = positions,
) -> tuple[float, Gradients]:
    """Return the loss and the gradient of every trainable parameter of ``tuned_model``.

    Args:
        base_model_loader: Function that returns the base model without any adapter.
        tuned_model: Base model with a perturbed adapter; its gradients are cleared before and after.
        sequences: (input_ids, labels) of each sequence of the step, of every micro-batch and rank.
        alpha: Weight of the alignment.
        direction: Direction of the KL: "base_to_tuned", "tuned_to_base" or "jsd".
        align_boundary: Whether the last prompt position before a response is aligned as well.
        align_fraction: f, the probability with which an aligned token is drawn.
        drawn: Indices of the drawn sequences, or the drawn positions of each by its index; None for all.
        find: Function that finds the positions of a sequence; planted mistakes replace it.
    """
    found = [find(labels, align_boundary) for _, labels in sequences]
    n_response = sum(len(each.targets) for each in found)
    n_aligned = sum(len(each.aligned) for each in found)
    chosen = range(len(sequences)) if drawn is None else drawn

    base = base_model_loader()
    tuned_model.zero_grad(set_to_none=True)
    total = 0.0
    for index, (input_ids, labels) in enumerate(sequences):
        ids = torch.tensor([list(input_ids)])
        tuned_TV = tuned_model(input_ids=ids, use_cache=False).logits[0]
        parts = []
        targets = found[index].targets
        if targets:
            gold = torch.tensor([labels[t + 1] for t in targets])
            parts.append(dense.nll_N(tuned_TV[targets], gold).sum() / n_response)
        aligned = found[index].aligned
        if isinstance(chosen, Mapping):
            aligned = [t for t in aligned if t in chosen.get(index, ())]
        if aligned and alpha and index in chosen:
            with torch.no_grad():
                base_TV = base(input_ids=ids, use_cache=False).logits[0]
            kl = dense.alignment_N(direction, tuned_TV[aligned], base_TV[aligned]).sum()
            parts.append(alpha * kl / (align_fraction * n_aligned))
        if parts:
            loss = torch.stack(parts).sum()
            loss.backward()
            total += loss.item()

    gradients = {
        adapter_name(name): torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in tuned_model.named_parameters()
        if parameter.requires_grad
    }
    tuned_model.zero_grad(set_to_none=True)
    return total, gradients


def relative_distance(actual: Gradients, expected: Gradients) -> float:
    """Return |actual - expected| / |expected|, Euclidean over all parameters together.

    Raises:
        AssertionError: If their parameters differ, or ``expected`` is zero.
    """
    assert actual.keys() == expected.keys(), sorted(actual.keys() ^ expected.keys())
    gap = sum((actual[name].double() - expected[name].double()).pow(2).sum().item() for name in expected)
    size = sum(tensor.double().pow(2).sum().item() for tensor in expected.values())
    assert size > 0, "the expected gradient is zero: any implementation that does nothing would agree"
    return float((gap / size) ** 0.5)
