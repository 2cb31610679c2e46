"""The GPU kernel for the elementwise work of a block of rows: whether it can run here, and its call.

Importing this module does not import Triton; calling :func:`rows_` does.

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

# Entries of a row that a program holds at a time. With 8 warps that is 16 entries a thread, or two 16-byte loads of
# 16-bit numbers; reasoned, not measured.
TILE = 4096
# Fusion is off because a multiply-add fused for one of the two models only would keep equal models from cancelling to
# exactly 0.
COMPILED_WITH = {"num_warps": 8, "enable_fp_fusion": False}
# Triton's compiler has no bfloat16 below this compute capability.
_LEAST_CAPABILITY = (8, 0)


@functools.cache
def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def preferred(device: torch.device) -> bool:
    """Whether the kernels are faster than PyTorch's operations: on a GPU, but not in the interpreter."""
    return device.type == "cuda"


def obstacle(terms: Sequence[RowTerm], dtype: torch.dtype, device: torch.device) -> str | None:
    """Return why the kernels cannot compute these terms in this dtype on this device; ``None`` where they can."""
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
    """``projected ← d/d projected Σ_terms share · term(shape(projected), shape(reference), label)``, by one launch.

    Return each term's values and statistics (n, float32). The launch takes a few numbers a row of memory beside the
    block, and nothing waits for the device.

    Args:
        projected_nV: Rows before the head's scale and cap: contiguous, float32, bfloat16 or float16.
        reference_nV: Rows of the reference before scale and cap, where a term needs them.
        label_n: Next tokens, int64, where a term needs them; one outside [0, V) gives NaN.
        terms: Row terms with a common kernel form (see :func:`obstacle`).
        heads: Heads of the tuned model and of the reference, for their scale and cap.
        shares: Weight of each term in the gradient of each row (n, float32); ``None`` for 1.
        gradient: Whether ``projected_nV`` is overwritten by the gradient; if not, it is left as it is.
    """
    from selfaug.objective.kernels.row_kernel import row_kernel

    form = form_of(terms)
    assert form is not None
    assert projected_nV.is_contiguous()
    count, vocabulary = projected_nV.shape
    results_4n = projected_nV.new_empty((4, count), dtype=torch.float32)
    nll_share_n, alignment_share_n = _shares(form, shares, results_4n)
    head, reference_head = heads
    if count:
        with torch.cuda.device_of(projected_nV):
            row_kernel[(count,)](
                projected_nV,
                projected_nV.stride(0),
                # The kernel does not read through pointers that its terms do not need.
                projected_nV if reference_nV is None else reference_nV,
                0 if reference_nV is None else reference_nV.stride(0),
                results_4n if label_n is None else label_n.contiguous(),
                nll_share_n,
                alignment_share_n,
                results_4n,
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
    nll = (results_4n[0], {"entropy": results_4n[1], "correct": results_4n[2]})
    return [nll if place == form.nll else (results_4n[3], {}) for place in range(len(terms))]


def _shares(form: KernelForm, shares: Sequence[Tensor] | None, unused: Tensor) -> tuple[Tensor, Tensor]:
    if shares is None:
        return unused, unused
    assert form.nll is not None
    assert form.alignment is not None
    return shares[form.nll].contiguous(), shares[form.alignment].contiguous()
