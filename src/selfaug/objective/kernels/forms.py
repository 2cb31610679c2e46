"""Kernel forms: the row terms that the kernel computes, alone or together.

The kernel knows the formulas of `terms.py` by number. A term of any other class has no form, and its rows go through
PyTorch's operations; that includes subclasses, which may have changed the formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from selfaug.objective.terms import NLL, BaseToTuned, JensenShannon, RowTerm, TunedToBase

__all__ = ["DIRECTIONS", "DTYPES", "KernelForm", "form_of"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The numbers of the alignment terms in the kernel; 0 is for none.
DIRECTIONS: dict[type, int] = {BaseToTuned: 1, TunedToBase: 2, JensenShannon: 3}


@dataclass(frozen=True)
class KernelForm:
    """The form of a group's terms.

    Args:
        nll: Index of the NLL among the terms; ``None`` for none.
        alignment: Index of the alignment; ``None`` for none.
        direction: Number of the alignment in `DIRECTIONS`; 0 for none.
    """

    nll: int | None
    alignment: int | None
    direction: int


def form_of(terms: Sequence[RowTerm]) -> KernelForm | None:
    """Return the form of at most one NLL and one alignment, in any order; ``None`` for other terms."""
    nll = [i for i, term in enumerate(terms) if type(term) is NLL]
    aligned = [i for i, term in enumerate(terms) if type(term) in DIRECTIONS]
    if not terms or len(nll) > 1 or len(aligned) > 1 or len(nll) + len(aligned) < len(terms):
        return None
    direction = DIRECTIONS[type(terms[aligned[0]])] if aligned else 0
    return KernelForm(nll[0] if nll else None, aligned[0] if aligned else None, direction)
