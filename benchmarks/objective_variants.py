"""Who computes the alignment objective, and on what? Our sweep, dense logits, TRL's and Liger's kernels, bare products.

Shapes: N rows, V vocabulary, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name for it
from torch import Tensor

from selfaug.objective import BaseToTuned, LMHead, Rows, WeightedTerm, sweep
from selfaug.objective.blocks import blocks

__all__ = ["BARE", "GPU_VARIANTS", "VARIANTS", "Inputs", "Sizes", "bare_products", "forward_backward", "make_inputs"]


@dataclass(frozen=True)
class Sizes:
    """N, V and H, and the memory of our row blocks in bytes."""

    rows: int
    vocabulary: int
    hidden: int
    block_bytes: int


@dataclass(frozen=True)
class Inputs:
    """Hidden states of the tuned model (with a gradient) and of the reference, N × H, and the shared head, V × H."""

    hidden_NH: Tensor
    reference_NH: Tensor
    weight_VH: Tensor
    block_bytes: int

    def first(self, rows: int) -> Inputs:
        """The first rows only."""
        hidden_NH = self.hidden_NH[:rows].detach().requires_grad_()
        return replace(self, hidden_NH=hidden_NH, reference_NH=self.reference_NH[:rows])

    @property
    def group(self) -> Rows:
        """All rows under the alignment term with weight 1."""
        index_N = torch.arange(len(self.hidden_NH), device=self.hidden_NH.device)
        return Rows(index_N, (WeightedTerm(BaseToTuned(), 1.0),), reference_NH=self.reference_NH)


def make_inputs(sizes: Sizes, dtype: torch.dtype, seed: int = 0, device: str = "cpu") -> Inputs:
    """Logits with a standard deviation of 3 (a few nats below uniform), and a reference a little away from tuned."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(count: int) -> Tensor:
        return torch.randn(count, sizes.hidden, generator=generator, dtype=dtype, device=device)

    weight_VH = normal(sizes.vocabulary).mul_(3 / sizes.hidden**0.5)
    reference_NH = normal(sizes.rows)
    moved_NH = normal(sizes.rows).mul_(0.1)
    return Inputs((reference_NH + moved_NH).requires_grad_(), reference_NH, weight_VH, sizes.block_bytes)


def ours(inputs: Inputs) -> Tensor:
    """The row-block sweep."""
    return sweep(inputs.hidden_NH, LMHead(inputs.weight_VH), [inputs.group], block_bytes=inputs.block_bytes).loss


def ours_torch(inputs: Inputs) -> Tensor:
    """The row-block sweep without its GPU kernels."""
    head, group = LMHead(inputs.weight_VH), inputs.group
    return sweep(inputs.hidden_NH, head, [group], block_bytes=inputs.block_bytes, elementwise="torch").loss


def dense(inputs: Inputs) -> Tensor:
    """Both models' logits whole and in float32, as the release computes it."""
    logits_NV = F.linear(inputs.hidden_NH, inputs.weight_VH).float()
    with torch.no_grad():
        reference_NV = F.linear(inputs.reference_NH, inputs.weight_VH).float()
    log_p_NV, log_q_NV = F.log_softmax(logits_NV, dim=-1), F.log_softmax(reference_NV, dim=-1)
    return F.kl_div(log_p_NV, log_q_NV, reduction="sum", log_target=True)


def trl(inputs: Inputs) -> Tensor:
    """TRL's chunked divergence (β = 0: forward KL from the teacher, our base, to the student, our tuned model)."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    mask_1N = torch.ones(1, len(inputs.hidden_NH), device=inputs.hidden_NH.device)
    loss, _, _ = _chunked_divergence_loss(
        inputs.hidden_NH[None], inputs.reference_NH[None], inputs.weight_VH, inputs.weight_VH, mask_1N, 0.0, 1
    )
    return torch.as_tensor(loss)


def liger(inputs: Inputs) -> Tensor:
    """Liger's chunked JSD at β = 0 (forward KL), which needs no Triton; uncompiled, its default chunk.

    It always forms the head's gradient too, which a frozen head does not need.
    """
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    count = len(inputs.hidden_NH)
    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=False)
    labels_N = torch.zeros(count, dtype=torch.int64, device=inputs.hidden_NH.device)
    mean = loss(inputs.hidden_NH, inputs.weight_VH, inputs.reference_NH, inputs.weight_VH, labels_N)
    return torch.as_tensor(mean) * count


def liger_compiled(inputs: Inputs) -> Tensor:
    """The same under `torch.compile`, which is Liger's default on a GPU."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    count = len(inputs.hidden_NH)
    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0)
    labels_N = torch.zeros(count, dtype=torch.int64, device=inputs.hidden_NH.device)
    mean = loss(inputs.hidden_NH, inputs.weight_VH, inputs.reference_NH, inputs.weight_VH, labels_N)
    return torch.as_tensor(mean) * count


def liger_fused(inputs: Inputs) -> Tensor:
    """Liger's fused linear JSD in Triton at β = 0 (forward KL); a mean over rows."""
    from liger_kernel.transformers import LigerFusedLinearJSD

    mean = LigerFusedLinearJSD(jsd_beta=0.0)(
        inputs.hidden_NH, inputs.weight_VH, inputs.reference_NH, inputs.weight_VH, None
    )
    return torch.as_tensor(mean) * len(inputs.hidden_NH)


def bare_products(inputs: Inputs) -> None:
    """The three products of N·V·H alone, in the blocks that the sweep takes."""
    head = LMHead(inputs.weight_VH)
    with torch.no_grad():
        for block in blocks(inputs.group, inputs.hidden_NH, head, head, inputs.block_bytes, wide_copies=False):
            torch.mm(block.projected_nV, inputs.weight_VH)
            del block  # before the next one is projected


VARIANTS: dict[str, Callable[[Inputs], Tensor]] = {"ours": ours, "dense float32": dense, "trl": trl, "liger": liger}
GPU_VARIANTS: dict[str, Callable[[Inputs], Tensor]] = {
    "ours": ours,
    "ours, torch": ours_torch,
    "dense float32": dense,
    "trl": trl,
    "liger": liger,
    "liger, compiled": liger_compiled,
    "liger, fused": liger_fused,
}
BARE = "bare products"


def forward_backward(variant: Callable[[Inputs], Tensor], inputs: Inputs) -> float:
    """One turn; the value, summed over rows, in nats."""
    inputs.hidden_NH.grad = None
    loss = variant(inputs)
    loss.backward()
    return float(loss.detach())
