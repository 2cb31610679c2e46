"""Which row terms does the kernel compute, alone or together?

The kernel knows the formulas of `terms.py` by number. A term of any other class, subclasses included (they may have
changed the formula), has no form, and its rows go through PyTorch's operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from selfaug.objective.terms import NLL, BaseToTuned, JensenShannon, RowTerm, TunedToBase

__all__ = ["DIRECTIONS", "DTYPES", "KernelForm", "form_of"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# As the kernel numbers them; 0 for no alignment.
DIRECTIONS: dict[type, int] = {BaseToTuned: 1, TunedToBase: 2, JensenShannon: 3}


@dataclass(frozen=True)
class KernelForm:
    """Which of a group's terms, by place, is the NLL and which the alignment (and its direction, 0 for none)."""

    nll: int | None
    alignment: int | None
    direction: int


def form_of(terms: Sequence[RowTerm]) -> KernelForm | None:
    """At most one NLL and at most one alignment, in any order; ``None`` for anything else."""
    nll = [i for i, term in enumerate(terms) if type(term) is NLL]
    aligned = [i for i, term in enumerate(terms) if type(term) in DIRECTIONS]
    if not terms or len(nll) > 1 or len(aligned) > 1 or len(nll) + len(aligned) < len(terms):
        return None
    direction = DIRECTIONS[type(terms[aligned[0]])] if aligned else 0
    return KernelForm(nll[0] if nll else None, aligned[0] if aligned else None, direction)
