"""`corda` and `pissa`: start the adapter as a part of the pretrained weights."""

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
    """``loss = Σ nll / n_response``; the adapter starts as the part of W that some texts use least, taken out of it.

    With C the covariance of a layer's inputs on these texts and ``W C = U Σ Vᵀ``, s·B₀ A₀ is the part of
    ``W = U Σ Vᵀ C⁻¹`` with the R smallest singular values: what is trained carries least of what the texts stand for
    (CorDA's knowledge-preserving mode), and the rest of W is frozen. PEFT's own code (`preprocess_corda`, `corda_init`)
    does it.

    Source: arXiv 2406.05223. We differ in: the finished adapter is a plain one of rank 2 R on the base as it was
    (``selfaug/before/adapter_start.py``); without data of the user's the training prompts are the texts.
    """

    @dataclass(frozen=True)
    class Options:
        """Of `corda`."""

        corda_data: str | None = option(
            None,
            "File or folder of texts that stand for what is to be kept; the training prompts by default.",
            path=True,
        )
        corda_rows: int = option(256, "How many of its rows are read, drawn by the seed.", least=1)

    name: ClassVar[str] = "corda"
    summary: ClassVar[str] = "the adapter starts as the part of the weights that given texts use least"
    formula: ClassVar[str] = "Σ nll / n_response, from B₀·A₀: the R smallest directions of W·C, C of the layer's inputs"
    source: ClassVar[str] = "2406.05223"
    needs: ClassVar[str] = "a plain LoRA adapter, weights that are not quantised"
    adapter: ClassVar[str] = "lora"
    decides: ClassVar[frozenset[str]] = frozenset({ADAPTER_START})

    def check(self, config: SelfAugConfig) -> None:
        """The texts must be there."""
        named = self.options(config).corda_data
        if named is not None:
            data_files(Path(named))

    def changes(self, config: SelfAugConfig) -> Changes:
        """The start, by the texts."""
        o = self.options(config)
        texts = Texts(None if o.corda_data is None else Path(o.corda_data), o.corda_rows)
        return Changes(start=Start("corda", texts))


class PiSSA(Method):
    """``loss = Σ nll / n_response``; the adapter starts as the R largest singular directions of W, taken out of it.

    The opposite of `corda`, for comparison: what carries most of W is what is trained. PEFT's `pissa_init` does it.

    Source: arXiv 2404.02948. We differ in: the finished adapter is a plain one of rank 2 R on the base as it was.
    """

    name: ClassVar[str] = "pissa"
    summary: ClassVar[str] = "the adapter starts as the principal part of the weights"
    formula: ClassVar[str] = "Σ nll / n_response, from B₀·A₀: the R largest directions of W"
    source: ClassVar[str] = "2404.02948"
    needs: ClassVar[str] = "a plain LoRA adapter, weights that are not quantised"
    adapter: ClassVar[str] = "lora"
    decides: ClassVar[frozenset[str]] = frozenset({ADAPTER_START})

    def changes(self, config: SelfAugConfig) -> Changes:
        """The start, by the weights alone."""
        return Changes(start=Start("pissa"))
