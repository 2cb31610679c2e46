"""`cfs`: mix in texts that the model writes from its start token alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from selfaug.common.errors import ConfigError, DataError
from selfaug.data.tokens import text_ids
from selfaug.generation.from_start import start_of_text, texts_from_start
from selfaug.generation.writer import enough
from selfaug.methods.base import MIXED_ROWS, Changes, Compose, Method
from selfaug.methods.options import option

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selfaug.data.prompts import Renderer
    from selfaug.generation.writer import Writer
    from selfaug.training.config import SelfAugConfig

__all__ = ["CFS"]

TokenRow = dict[str, list[int]]


class CFS(Method):
    """``loss = Σ nll / n_response`` over the training rows and ``round(cfs_ratio · rows)`` context-free texts.

    A text is drawn from the base, given its start token and nothing else, at temperature 1 and from the whole
    distribution. Its NLL is then, up to a constant, an unbiased estimate of KL(base ‖ tuned) over texts, at
    `generation_length` tokens. A tokenizer without a start token begins with its end-of-text token, which stands
    between documents in pretraining.

    Source: CFS, arXiv 2505.13811: NLL + λ·E NLL(text), by adding the texts to the data set. We differ in: λ is the
    ratio of their tokens to the response's, set by `cfs_ratio`, whose default is that of `magpie`; a text loses white
    space at its ends, and ends at its first control token.
    """

    @dataclass(frozen=True)
    class Options:
        """Options of `cfs`."""

        cfs_ratio: float = option(
            1 / 9, "Self-written texts for each training row; 0 is plain fine-tuning.", least=0.0, most=100.0
        )
        cfs_temperature: float = option(1.0, "Temperature of the draws; 1 makes the estimate unbiased.", above=0.0)

    name: ClassVar[str] = "cfs"
    summary: ClassVar[str] = "texts that the base writes from its start token mixed in"
    formula: ClassVar[str] = "NLL on training rows and on cfs_ratio as many texts drawn from the base"
    source: ClassVar[str] = "2505.13811"
    differs: ClassVar[str] = (
        "the weight is the ratio of their tokens; the default ratio is ours; a text ends at its first control token"
    )
    needs: ClassVar[str] = "a tokenizer with a start or an end-of-text token"
    strength: ClassVar[str] = "cfs_ratio"
    decides: ClassVar[frozenset[str]] = frozenset({MIXED_ROWS})

    def changes(self, config: SelfAugConfig) -> Changes:
        """The texts, with a ratio above 0."""
        options = self.options(config)
        if not options.cfs_ratio:
            return Changes()
        write = partial(_write, temperature=options.cfs_temperature)
        return Changes(compose=Compose(options.cfs_ratio, write), check_prompts=(_require_start,))


def _require_start(tokenizer: PreTrainedTokenizerBase, renderer: Renderer) -> None:
    if not start_of_text(tokenizer):
        raise ConfigError(
            f"method='cfs' lets the model write from its start token, and {tokenizer.name_or_path!r} has neither a "
            "start nor an end-of-text token.",
            "choose another method.",
        )


def _write(writer: Writer, count: int, *, temperature: float) -> list[TokenRow]:
    start = len(text_ids(writer.tokenizer, start_of_text(writer.tokenizer)))

    def texts(numbers: list[int]) -> list[list[int] | None]:
        seeds = [writer.seed_of("cfs", number) for number in numbers]
        return texts_from_start(writer, seeds, "context-free texts", temperature=temperature)

    def too_few(kept: int, tried: int) -> DataError:
        return DataError(
            f"method='cfs': {kept} of {tried} texts that the model wrote have a word, and {count} are wanted.",
            "choose another method: this model ends at once after its start token.",
        )

    kept, tried = enough(count, texts, too_few)
    counts = {"kept": len(kept), "refused_empty": tried - len(kept)}
    writer.report("cfs", {name: number for name, number in counts.items() if number}, [])
    cut = [ids[: writer.max_length] for ids in kept]
    return [{"input_ids": ids, "labels": [-100] * start + ids[start:]} for ids in cut]
