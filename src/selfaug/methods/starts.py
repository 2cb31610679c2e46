"""`corda` and `pissa`: start the adapter as a part of the pretrained weights, which is taken out of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from selfaug.data.files import data_files
from selfaug.methods.base import ADAPTER_START, Changes, Method, Start
from selfaug.methods.options import option
from selfaug.methods.requests import Texts

if TYPE_CHECKING:
    from selfaug.training.config import SelfAugConfig

__all__ = ["CorDA", "PiSSA"]


class CorDA(Method):
    """``loss = Σ nll / n_response``; the adapter starts as the part of W that given texts use least.

    With C the covariance of a layer's inputs on these texts and ``W C = U Σ Vᵀ``, s·B₀ A₀ is the part of
    ``W = U Σ Vᵀ C⁻¹`` with the R smallest singular values. The trained part then carries least of what the texts
    represent (CorDA's knowledge-preserving mode), and the rest of W is frozen. PEFT computes it (`preprocess_corda`,
    `corda_init`).

    Source: arXiv 2406.05223. Differences: the exported adapter is a plain one of rank 2 R on the unchanged base
    (``selfaug/before/adapter_start.py``); the training prompts are the default texts.
    """

    @dataclass(frozen=True)
    class Options:
        """Options of `corda`."""

        corda_data: str | None = option(
            None,
            "File or folder of texts that represent what should be kept; the training prompts by default.",
            path=True,
        )
        corda_rows: int = option(256, "Number of its rows that are read, drawn by the seed.", least=1)

    name: ClassVar[str] = "corda"
    summary: ClassVar[str] = "the adapter starts as the part of the weights that given texts use least"
    formula: ClassVar[str] = "Σ nll / n_response, from B₀·A₀: the R smallest directions of W·C, C of the layer's inputs"
    source: ClassVar[str] = "2406.05223"
    differs: ClassVar[str] = (
        "the texts are only ours: by default the training prompts; exported as a plain adapter of rank 2R"
    )
    needs: ClassVar[str] = "a plain LoRA adapter, weights that are not quantised"
    adapter: ClassVar[str] = "lora"
    decides: ClassVar[frozenset[str]] = frozenset({ADAPTER_START})

    def check(self, config: SelfAugConfig) -> None:
        """Raise if the texts do not exist."""
        data = self.options(config).corda_data
        if data is not None:
            data_files(Path(data))

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return the start and its texts."""
        o = self.options(config)
        texts = Texts(None if o.corda_data is None else Path(o.corda_data), o.corda_rows)
        return Changes(start=Start("corda", texts))


class PiSSA(Method):
    """``loss = Σ nll / n_response``; the adapter starts as the R largest singular directions of W.

    This is the opposite of `corda`, for comparison: the principal part of W is trained. PEFT has it as `pissa_init`.

    Source: arXiv 2404.02948. Difference: the exported adapter is a plain one of rank 2 R on the unchanged base.
    """

    name: ClassVar[str] = "pissa"
    summary: ClassVar[str] = "the adapter starts as the principal part of the weights"
    formula: ClassVar[str] = "Σ nll / n_response, from B₀·A₀: the R largest directions of W"
    source: ClassVar[str] = "2404.02948"
    differs: ClassVar[str] = "exported as a plain adapter of rank 2R"
    needs: ClassVar[str] = "a plain LoRA adapter, weights that are not quantised"
    adapter: ClassVar[str] = "lora"
    decides: ClassVar[frozenset[str]] = frozenset({ADAPTER_START})

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return the start, which needs no texts."""
        return Changes(start=Start("pissa"))
