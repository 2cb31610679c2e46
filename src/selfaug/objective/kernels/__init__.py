"""Can the elementwise work of a block of rows be done in place by a GPU kernel, and how is it called?

Importing this imports no Triton; calling :func:`rows_` does.

Shapes: n rows of a block, V vocabulary.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from selfaug.objective.head import LMHead
from selfaug.objective.kernels.forms import DTYPES, KernelForm, form_of
from selfaug.objective.terms import RowTerm

__all__ = ["form_of", "obstacle", "preferred", "rows_"]

# Entries of a row that a program holds at a time, and its warps: 16 entries a thread, two 16-byte loads of 16-bit
# numbers. Reasoned, not measured.
TILE = 4096
# Without fusion the arithmetic is as it is written: a product and a sum made one for one of the two models only would
# keep equal models from cancelling to exactly 0.
COMPILED_WITH = {"num_warps": 8, "enable_fp_fusion": False}
# Below it, Triton's compiler has no bfloat16.
_LEAST_CAPABILITY = (8, 0)


@functools.cache
def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def preferred(device: torch.device) -> bool:
    """Whether the kernels are the faster way where nothing stands against them: on a GPU, not in the interpreter."""
    return device.type == "cuda"


def obstacle(terms: Sequence[RowTerm], dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the kernels cannot compute these terms in this dtype on this device; ``None`` where they can."""
    if not _triton_is_installed():
        return "the package triton is not installed"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the device is {device.type!r}, not 'cuda'"
    if device.type == "cuda" and _capability(device) < _LEAST_CAPABILITY:
        return "this GPU is older than Triton compiles for"
    if dtype not in DTYPES:
        return f"they compute in float32, which is too narrow for {dtype}"
    if form_of(terms) is None:
        return f"the terms {[type(term).__name__ for term in terms]} have no common form in them"
    return None


def rows_(
    projected_nV: Tensor,
    reference_nV: Tensor | None,
    label_n: Tensor | None,
    *,
    terms: Sequence[RowTerm],
    heads: tuple[LMHead, LMHead],
    shares: Sequence[Tensor] | None,
    gradient: bool,
) -> list[tuple[Tensor, Mapping[str, Tensor]]]:
    """Each term's values and statistics of the rows (n, float32); the gradient in place of ``projected_nV``.

    ``projected ← d/d projected Σ_terms share · term(shape(projected), shape(reference), label)``: one launch, n numbers
    of memory beside the block, and nothing waits for the device.

    Args:
        projected_nV: Rows before the head's scale and cap: contiguous, float32, bfloat16 or float16.
        reference_nV: The reference's, where a term needs it.
        label_n: int64 next tokens, where a term needs them. One outside [0, V) gives NaN.
        terms: With a common form: see :func:`obstacle`.
        heads: Of the tuned model and of the reference, for their scale and cap.
        shares: Of each term in the gradient of each row (n, float32); ``None`` for 1.
        gradient: Where false, ``projected_nV`` is left as it is.
    """
    from selfaug.objective.kernels.row_kernel import row_kernel

    form = form_of(terms)
    assert form is not None
    assert projected_nV.is_contiguous()
    count, vocabulary = projected_nV.shape
    found_4n = projected_nV.new_empty((4, count), dtype=torch.float32)
    nll_share_n, alignment_share_n = _shares(form, shares, found_4n)
    head, reference_head = heads
    if count:
        with torch.cuda.device_of(projected_nV):
            row_kernel[(count,)](
                projected_nV,
                projected_nV.stride(0),
                # Pointers that the kernel does not follow where it has no use for them.
                projected_nV if reference_nV is None else reference_nV,
                0 if reference_nV is None else reference_nV.stride(0),
                found_4n if label_n is None else label_n.contiguous(),
                nll_share_n,
                alignment_share_n,
                found_4n,
                count,
                vocabulary,
                float(head.scale),
                float(head.soft_cap or 1.0),
                float(reference_head.scale),
                float(reference_head.soft_cap or 1.0),
                HAS_NLL=form.nll is not None,
                DIRECTION=form.direction,
                SHARED=shares is not None,
                GRADIENT=gradient,
                CAPPED=head.soft_cap is not None,
                REFERENCE_CAPPED=reference_head.soft_cap is not None,
                TILE=TILE,
                **COMPILED_WITH,
            )
    nll = (found_4n[0], {"entropy": found_4n[1], "correct": found_4n[2]})
    return [nll if place == form.nll else (found_4n[3], {}) for place in range(len(terms))]


def _shares(form: KernelForm, shares: Sequence[Tensor] | None, unused: Tensor) -> tuple[Tensor, Tensor]:
    if shares is None:
        return unused, unused
    assert form.nll is not None
    assert form.alignment is not None
    return shares[form.nll].contiguous(), shares[form.alignment].contiguous()
