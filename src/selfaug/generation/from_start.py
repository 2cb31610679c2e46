"""Texts that a model writes from its start token alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from selfaug.data.tokens import text_ids
from selfaug.generation.requests import Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selfaug.generation.writer import Writer

__all__ = ["start_of_text", "texts_from_start"]


def start_of_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the token that a text begins with; empty where the tokenizer has none."""
    return str(tokenizer.bos_token or tokenizer.eos_token or "")


def texts_from_start(writer: Writer, seeds: Sequence[int], what: str, *, temperature: float) -> list[list[int] | None]:
    """Return for each seed the token ids of a text with its start and its end, if it ended; ``None`` without a word.

    Args:
        writer: Writer of the base.
        seeds: Seeds of the draws.
        what: Name of the work, for the progress bar.
        temperature: Temperature of the draws.
    """
    tokenizer, start = writer.tokenizer, start_of_text(writer.tokenizer)
    requests = [Request(text=start, length=writer.length, temperature=temperature, seed=seed) for seed in seeds]
    found: list[list[int] | None] = []
    for reply in writer.write(requests, what):
        ids = text_ids(tokenizer, reply.text)
        end = [tokenizer.eos_token_id] if reply.ended and tokenizer.eos_token_id is not None else []
        found.append([*text_ids(tokenizer, start), *ids, *end] if ids else None)
    return found
