"""The adapter gradient of one optimiser step of a rival method, one unpadded sequence at a time.

    loss = sum_seq sum_t own(t) / n_response + weight · sum_{drawn seq} sum_t compare(t) / (f · n_response)

``own`` is the loss of a response token, and ``compare`` the distance of its distribution from the base's. Both are
functions of dense logits, and must detach any weights themselves. Base and tuned are two separately loaded models;
nothing is imported from the package.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from tests.models import adapter_name
from tests.oracles.step import Gradients, Sequence_, positions

Own = Callable[[Tensor, Tensor], Tensor]
Compare = Callable[[Tensor, Tensor, Tensor], Tensor]


def method_gradient(
    base: torch.nn.Module,
    tuned: torch.nn.Module,
    sequences: Sequence[Sequence_],
    own: Own,
    compare: Compare | None = None,
    weight: float = 0.0,
    fraction: float = 1.0,
    drawn: Collection[int] | None = None,
) -> tuple[float, Gradients]:
    """Return the loss and the gradient of every trainable parameter of ``tuned``."""
    targets = [positions(labels, False).targets for _, labels in sequences]
    count = sum(len(each) for each in targets)
    tuned.zero_grad(set_to_none=True)
    total = 0.0
    for index, ((input_ids, labels), chosen) in enumerate(zip(sequences, targets, strict=True)):
        if not chosen:
            continue
        ids = torch.tensor([list(input_ids)])
        gold = torch.tensor([labels[t + 1] for t in chosen])
        z_NV = tuned(input_ids=ids, use_cache=False).logits[0][chosen]
        loss = own(z_NV, gold).sum() / count
        if compare is not None and (drawn is None or index in drawn):
            with torch.no_grad():
                r_NV = base(input_ids=ids, use_cache=False).logits[0][chosen]
            loss = loss + weight * compare(z_NV, r_NV, gold).sum() / (fraction * count)
        loss.backward()
        total += loss.item()
    gradients = {
        adapter_name(name): p.grad.clone()
        for name, p in tuned.named_parameters()
        if p.requires_grad and p.grad is not None
    }
    tuned.zero_grad(set_to_none=True)
    return total, gradients
