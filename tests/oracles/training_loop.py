"""Whole trainings of LoRA factors, step by step in plain code: the model's weights are W + s B A, and AdamW moves A, B.

    step        loss = sum_seq sum_t w(t) nll(t) / n_response, over all sequences
    projection  weights W + s P B A Q, for given P and Q: the chain rule does the rest
    ratio       w(t) nll(t) becomes -min(r, 1 + clip), r = p(t) / p_old(t), p_old of the step ⌊step / renew⌋ · renew
    rate        learning rate of a step: times the mean over earlier steps' factor, given as a function of the loss

Every sequence is run alone, through `torch.func.functional_call` on a model without adapter. Nothing is imported from
the package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from tests.oracles.step import Sequence_

Factors = dict[str, tuple[Tensor, Tensor]]


def strongest(weight: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """``I - U_k U_kᵀ`` and ``I - V_k V_kᵀ`` by the eigenvectors of W Wᵀ and Wᵀ W, of their largest eigenvalues."""
    W = weight.double().numpy()

    def complement(gram: np.ndarray) -> Tensor:
        vectors = np.linalg.eigh(gram)[1][:, -count:]  # eigenvalues rise
        return torch.from_numpy(np.eye(len(gram)) - vectors @ vectors.T)

    return complement(W @ W.T), complement(W.T @ W)


def token_nll(model: torch.nn.Module, weights: Mapping[str, Tensor], sequence: Sequence_) -> Tensor:
    ids, labels = sequence
    logits = functional_call(model, dict(weights), kwargs={"input_ids": torch.tensor([list(ids)]), "use_cache": False})
    log_p = logits.logits[0].log_softmax(-1)
    return torch.stack([-log_p[t, labels[t + 1]] for t in range(len(ids) - 1) if labels[t + 1] != -100])


def train(
    model: torch.nn.Module,
    start: Factors,
    scale: float,
    sequences: Sequence[Sequence_],
    steps: int,
    rate: float,
    *,
    sides: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    clip: float | None = None,
    renew: int = 1,
    factor: Callable[[list[float]], float] = lambda losses: 1.0,
) -> tuple[dict[str, Tensor], list[float]]:
    """Return the update of each weight after ``steps`` steps of AdamW, and the mean NLL of each step."""
    factors = {name: (A.clone().requires_grad_(), B.clone().requires_grad_()) for name, (A, B) in start.items()}
    optimizer = torch.optim.AdamW([p for pair in factors.values() for p in pair], lr=rate, weight_decay=0.0)
    own = dict(model.named_parameters())

    def updates() -> dict[str, Tensor]:
        found = {}
        for name, (A, B) in factors.items():
            P, Q = (sides or {}).get(name, (torch.eye(len(B)).double(), torch.eye(A.shape[1]).double()))
            found[name] = scale * P @ B @ A @ Q
        return found

    def weights() -> dict[str, Tensor]:
        return {name: own[name].detach() + update for name, update in updates().items()}

    losses: list[float] = []
    old: list[Tensor] = []
    for step in range(steps):
        if step % renew == 0:
            with torch.no_grad():
                old = [token_nll(model, weights(), sequence) for sequence in sequences]
        now = [token_nll(model, weights(), sequence) for sequence in sequences]
        count = sum(len(nll) for nll in now)
        losses.append(sum(nll.detach().sum().item() for nll in now) / count)
        if clip is None:
            loss = sum(nll.sum() for nll in now) / count
        else:
            loss = (
                -sum(
                    torch.minimum((o - n).exp(), torch.tensor(1 + clip, dtype=n.dtype)).sum()
                    for o, n in zip(old, now, strict=True)
                )
                / count
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        for group in optimizer.param_groups:
            group["lr"] = rate * factor(losses)
        optimizer.step()
    return {name: update.detach() for name, update in updates().items()}, losses
