"""`oplora`: keeps the update out of the strongest singular directions of the pretrained weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from accelerate.utils import broadcast

from selfaug.methods.base import ADAPTER_START, Changes, Method
from selfaug.methods.options import option
from selfaug.model.libraries import lora_pairs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from selfaug.training.config import SelfAugConfig

__all__ = ["OPLoRA"]


class OPLoRA(Method):
    """``ΔW = s (I - U_k U_kᵀ) B A (I - V_k V_kᵀ)``, U_k and V_k the k first singular vectors of W on both sides.

    W then keeps its k strongest singular triples exactly. k is a share of the smaller side of each weight. Gradients of
    A and B are projected as the chain rule has it, and A and B themselves after each step: that changes neither ΔW nor
    its course under any optimiser, so that checkpoints and exports are plain adapters.

    Source: arXiv 2510.13003, whose abstract states both projections. Differences: k is a share of each weight's rank
    instead of one number for all.
    """

    @dataclass(frozen=True)
    class Options:
        """Options of `oplora`."""

        kept_share: float = option(
            0.125, "Share of each weight's singular directions that stay; 0 is plain fine-tuning.", least=0.0, most=0.9
        )

    name: ClassVar[str] = "oplora"
    summary: ClassVar[str] = "an update outside the weights' strongest singular directions"
    formula: ClassVar[str] = "NLL, ΔW = s·(I - U·Uᵀ)·B·A·(I - V·Vᵀ), U and V of W's strongest directions"
    source: ClassVar[str] = "2510.13003"
    differs: ClassVar[str] = "known by its abstract alone; k is a share of each weight's rank"
    needs: ClassVar[str] = "a plain LoRA adapter, weights that are not quantised"
    strength: ClassVar[str] = "kept_share"
    adapter: ClassVar[str] = "lora"
    reads_weights: ClassVar[bool] = True
    decides: ClassVar[frozenset[str]] = frozenset({ADAPTER_START})

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return the constraint, with a share above 0."""
        share = self.options(config).kept_share
        return Changes(constraints=(partial(_keep_out, share=share),)) if share else Changes()


@torch.no_grad()
def _keep_out(model: nn.Module, share: float) -> Callable[[], None]:
    bases: list[tuple[Tensor, Tensor]] = []
    pairs = lora_pairs(model)
    for pair in pairs:
        assert pair.W is not None
        W_OI = pair.W.detach()
        U, _, Vh = torch.linalg.svd(W_OI if W_OI.dtype == torch.float64 else W_OI.float(), full_matrices=False)
        k = max(1, round(share * min(W_OI.shape)))
        # Devices may round differently, so all ranks take the first one's directions.
        U_Ok, V_Ik = broadcast([U[:, :k].contiguous(), Vh[:k].T.contiguous()])
        bases.append((U_Ok, V_Ik))
        pair.A.register_hook(partial(_without_rows, V_Ik=V_Ik))
        pair.B.register_hook(partial(_without_columns, U_Ok=U_Ok))

    @torch.no_grad()
    def project() -> None:
        for pair, (U_Ok, V_Ik) in zip(pairs, bases, strict=True):
            pair.A.copy_(_without_rows(pair.A, V_Ik))
            pair.B.copy_(_without_columns(pair.B, U_Ok))

    project()
    return project


def _without_rows(A_RI: Tensor, V_Ik: Tensor) -> Tensor:
    wide_RI = A_RI.to(V_Ik.dtype)
    return (wide_RI - (wide_RI @ V_Ik) @ V_Ik.T).to(A_RI.dtype)


def _without_columns(B_OR: Tensor, U_Ok: Tensor) -> Tensor:
    wide_OR = B_OR.to(U_Ok.dtype)
    return (wide_OR - U_Ok @ (U_Ok.T @ wide_OR)).to(B_OR.dtype)
