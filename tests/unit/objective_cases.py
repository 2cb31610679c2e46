"""On which hidden states, heads and rows is the objective tested, and what do the oracles say about them?

Every expectation comes from `tests/oracles`, which shares no code with the package. Inputs are rounded to the dtype
under test before the oracle sees them, so a tolerance pays for the package's own arithmetic alone.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selfaug.objective import ALIGNMENT_TERMS, NLL, LMHead, Objective, Rows, RowTerm, WeightedTerm, sweep
from tests.oracles import dense, rows

Run = Callable[..., Objective]

# Euclidean distance over Euclidean size, the package against the oracle.
# float64, float32: a few hundred roundings of 1.1e-16 and 6e-8 in a row of V terms and a product of H.
# bfloat16 keeps 8 bits: a logit of size 4 is off by up to 2^-7, so a probability by up to 0.8 %, and the gradient that
# is projected back is rounded once more. float16 keeps 11 bits: an eighth of it.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2.5e-3}
DTYPES = tuple(TOLERANCE)
BLOCKS_MODULE = importlib.import_module("selfaug.objective.blocks")
TERMS = ("nll", *rows.DIRECTIONS)
HEADS = {
    "bare": (False, 1.0, None),
    "bias": (True, 1.0, None),
    "scale": (False, 0.4, None),
    "soft cap": (False, 1.0, 2.0),
    "bias, scale and soft cap": (True, 0.7, 1.5),
}


@dataclass
class Case:
    """T hidden states, of which some rows meet the NLL, some the alignment, some both."""

    hidden_TH: Tensor
    reference_TH: Tensor
    head: LMHead
    reference_head: LMHead | None
    direction: str
    nll: Sequence[int]
    aligned: Sequence[int]
    both: Sequence[int]
    labels_T: Tensor

    def groups(self) -> tuple[Rows, ...]:
        alignment = ALIGNMENT_TERMS[self.direction]
        weight_N = torch.linspace(0.5, 1.5, len(self.aligned), dtype=torch.float64)
        return (
            self.rows(self.nll, [(NLL(), 0.25)]),
            self.rows(self.aligned, [(alignment, weight_N)]),
            self.rows(self.both, [(NLL(), 0.125), (alignment, 2.0)]),
        )

    def rows(self, index: Sequence[int], terms: list[tuple[RowTerm, float | Tensor]]) -> Rows:
        index_N = torch.tensor(index, dtype=torch.int64)
        labelled = any(term.needs_label for term, _ in terms)
        compared = any(term.needs_reference for term, _ in terms)
        return Rows(
            index_N,
            tuple(WeightedTerm(term, weight) for term, weight in terms),
            label_N=self.labels_T[index_N] if labelled else None,
            reference_NH=self.reference_TH[index_N] if compared else None,
        )


@dataclass
class Expected:
    loss: float
    sums: dict[str, float]
    hidden_TH: Tensor
    weight_VH: Tensor
    bias_V: Tensor


def case(
    direction: str,
    dtype: torch.dtype = torch.float64,
    head: str = "bare",
    T: int = 19,
    V: int = 23,
    H: int = 7,
    separate: bool = False,
    seed: int = 0,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, spread: float = 1.0) -> Tensor:
        return (spread * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)

    biased, scale, soft_cap = HEADS[head]

    def projection() -> LMHead:
        return LMHead(normal(V, H, spread=0.8), normal(V) if biased else None, scale, soft_cap)

    order = torch.randperm(T, generator=generator).tolist()
    return Case(
        hidden_TH=normal(T, H),
        reference_TH=normal(T, H),
        head=projection(),
        reference_head=projection() if separate else None,
        direction=direction,
        nll=order[: T // 3],
        aligned=order[T // 3 : 2 * T // 3],
        both=order[2 * T // 3 : T - 2],  # two rows belong to nothing and get no gradient
        labels_T=torch.randint(0, V, (T,), generator=generator),
    )


def by_loops(c: Case) -> Expected:
    """The objective of a case from `tests/oracles/rows.py`, row by row."""
    hidden, reference = c.hidden_TH.tolist(), c.reference_TH.tolist()
    tuned_head, base_head = _plain_head(c.head), _plain_head(c.reference_head or c.head)
    V, H = c.head.weight_VH.shape
    expected = Expected(
        0.0,
        {"nll": 0.0, "alignment": 0.0, "entropy": 0.0, "correct": 0.0},
        torch.zeros(len(hidden), H, dtype=torch.float64),
        torch.zeros(V, H, dtype=torch.float64),
        torch.zeros(V, dtype=torch.float64),
    )
    count = len(c.aligned)
    aligned_weight = [0.5 + i / (count - 1) if count > 1 else 0.5 for i in range(count)]
    plan = [(n, [("nll", 0.25)]) for n in c.nll]
    plan += [(n, [(c.direction, w)]) for n, w in zip(c.aligned, aligned_weight, strict=True)]
    plan += [(n, [("nll", 0.125), (c.direction, 2.0)]) for n in c.both]
    for n, terms in plan:
        z = rows.head_logits(hidden[n], *tuned_head)
        for name, weight in terms:
            if name == "nll":
                label = int(c.labels_T[n])
                term = rows.nll(z, label)
                expected.sums["nll"] += term.value
                expected.sums["entropy"] += rows.entropy(z)
                expected.sums["correct"] += rows.top1(z) == label
            else:
                term = rows.alignment(name, z, rows.head_logits(reference[n], *base_head))
                expected.sums["alignment"] += term.value
            expected.loss += weight * term.value
            if not math.isfinite(term.value):
                continue  # there is no slope to speak of
            gradient = rows.head_gradient(term.dlogits, hidden[n], *tuned_head)
            expected.hidden_TH[n] += weight * torch.tensor(gradient.hidden, dtype=torch.float64)
            expected.weight_VH += weight * torch.tensor(gradient.weight, dtype=torch.float64)
            expected.bias_V += weight * torch.tensor(gradient.bias, dtype=torch.float64)
    return expected


def _plain_head(head: LMHead) -> tuple[list[list[float]], list[float] | None, float, float | None]:
    bias = None if head.bias_V is None else head.bias_V.tolist()
    return head.weight_VH.tolist(), bias, head.scale, head.soft_cap


def distance(actual: Tensor | float, expected: Tensor | float) -> float:
    """|actual - expected| / |expected|; the size of actual itself where nothing is expected."""
    wanted = torch.as_tensor(expected, dtype=torch.float64)
    gap = torch.linalg.vector_norm(torch.as_tensor(actual, dtype=torch.float64).detach() - wanted).item()
    size = torch.linalg.vector_norm(wanted).item()
    return float(gap / size) if size else float(gap)


def backward(
    c: Case, run: Run = sweep, trained: bool = True, **options: Any
) -> tuple[Objective, Tensor, Tensor | None, Tensor | None]:
    """Run the objective and its backward pass: the result and the gradients of hidden states, weight, bias."""
    hidden_TH = c.hidden_TH.clone().requires_grad_()
    weight_VH = c.head.weight_VH.clone().requires_grad_(trained)
    bias_V = None if c.head.bias_V is None else c.head.bias_V.clone().requires_grad_(trained)
    head = LMHead(weight_VH, bias_V, c.head.scale, c.head.soft_cap)
    result = run(hidden_TH, head, c.groups(), c.reference_head or (c.head if trained else None), **options)
    result.loss.backward()
    assert hidden_TH.grad is not None
    return result, hidden_TH.grad, weight_VH.grad, None if bias_V is None else bias_V.grad


def by_autograd(c: Case) -> Expected:
    head, reference_head = c.head, c.reference_head or c.head
    leaves = [x.clone().requires_grad_() for x in (c.hidden_TH, head.weight_VH)]
    bias_V = torch.zeros(len(head.weight_VH), dtype=torch.float64) if head.bias_V is None else head.bias_V.clone()
    leaves.append(bias_V.requires_grad_())
    z = dense.logits_NV(leaves[0], leaves[1], leaves[2], head.scale, head.soft_cap)
    base = reference_head
    r = dense.logits_NV(c.reference_TH, base.weight_VH, base.bias_V, base.scale, base.soft_cap)
    nll_T = dense.nll_N(z, c.labels_T)
    alignment_T = dense.alignment_N(c.direction, z, r)
    weight_N = torch.linspace(0.5, 1.5, len(c.aligned), dtype=torch.float64)
    loss = 0.25 * nll_T[list(c.nll)].sum() + (weight_N * alignment_T[list(c.aligned)]).sum()
    loss = loss + (0.125 * nll_T + 2.0 * alignment_T)[list(c.both)].sum()
    return Expected(loss.item(), {}, *torch.autograd.grad(loss, leaves))
