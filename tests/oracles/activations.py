"""The adapter gradient of a step that aligns activations, one unpadded sequence at a time.

    loss = sum nll / n_response
           + weight · mean_m sum_{drawn seq} sum_{t aligned} mean_d (h_m - base_m)^2 / (f · n_aligned)

h_m is the output of module m, captured by a hook on each module whose dotted name ends with one of the given words.
Base and tuned are two separately loaded models; nothing is imported from the package.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.models import adapter_name
from tests.oracles import dense
from tests.oracles.step import Gradients, Sequence_, positions


def activation_gradient(
    base: torch.nn.Module,
    tuned: torch.nn.Module,
    sequences: Sequence[Sequence_],
    ends: Collection[str],
    weight: float,
    boundary: bool = False,
    fraction: float = 1.0,
    drawn: Collection[int] | None = None,
) -> tuple[float, Gradients]:
    """Return the loss and the gradient of every trainable parameter of ``tuned``."""
    every = [positions(labels, boundary) for _, labels in sequences]
    n_response, n_aligned = sum(len(p.targets) for p in every), sum(len(p.aligned) for p in every)
    tuned.zero_grad(set_to_none=True)
    total = 0.0
    for index, ((input_ids, labels), where) in enumerate(zip(sequences, every, strict=True)):
        ids = torch.tensor([list(input_ids)])
        (logits, tuned_by), (_, base_by) = (_captured(model, ids, ends) for model in (tuned, base))
        gold = torch.tensor([labels[t + 1] for t in where.targets], dtype=torch.int64)
        loss = dense.nll_N(logits[where.targets], gold).sum() / n_response
        if where.aligned and (drawn is None or index in drawn):
            for mine, theirs in zip(tuned_by, base_by, strict=True):
                for t in where.aligned:
                    gap = (mine[t] - theirs[t].detach()) ** 2
                    loss = loss + weight * gap.mean() / len(tuned_by) / (fraction * n_aligned)
        loss.backward()
        total += loss.item()
    gradients = {
        adapter_name(name): torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in tuned.named_parameters()
        if p.requires_grad
    }
    tuned.zero_grad(set_to_none=True)
    return total, gradients


def _captured(model: torch.nn.Module, ids: Tensor, ends: Collection[str]) -> tuple[Tensor, list[Tensor]]:
    outputs: list[Tensor] = []

    def capture(module: torch.nn.Module, given: Any, output: Any) -> None:
        outputs.append((output[0] if isinstance(output, tuple) else output)[0])

    handles = [m.register_forward_hook(capture) for name, m in model.named_modules() if name.split(".")[-1] in ends]
    logits = model(input_ids=ids, use_cache=False).logits[0]
    for handle in handles:
        handle.remove()
    return logits, outputs
