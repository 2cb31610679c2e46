"""Rows whose answer was lost when documents were dropped: how they are detected, and what is done with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from selfaug.common.errors import ConfigError, nearest
from selfaug.data.record import Conversation, Document, Item, Record
from selfaug.data.words import contains

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "LOST_HINT", "SKIPPED", "OnLostAnswer", "accepted_answers", "check_on_lost_answer", "lost_in_documents",
    "lost_in_prompt", "prompt_and_response",
]  # fmt: skip

OnLostAnswer = Literal["keep", "skip", "abstain"]

SKIPPED = "its answer stands only in what did not fit"
LOST_HINT = (
    "raise --max_length; or pass --on_lost_answer skip to leave such rows out, or abstain to train the abstention text "
    "in their place."
)


def check_on_lost_answer(value: str) -> None:
    """Refuse a word that is none of the three.

    Raises:
        ConfigError: If it is not.
    """
    known = get_args(OnLostAnswer)
    if value not in known:
        raise ConfigError(
            f"on_lost_answer={value!r} is not known.{nearest(str(value), known)}",
            "choose keep (train the answer all the same), skip (leave the row out) or abstain (train the abstention).",
        )


def accepted_answers(item: Item) -> tuple[str, ...]:
    """What a row is trained to say, or may say: a record's accepted answers, a conversation's assistant turns."""
    if isinstance(item, Record):
        return item.answers
    assert isinstance(item, Conversation)
    return tuple(str(message.get("content") or "") for message in item.messages if message["role"] == "assistant")


def lost_in_documents(answers: Sequence[str], documents: Iterable[Document], kept: Iterable[Document]) -> bool:
    """Whether an answer stood in a document, title or text, and none stands in what was kept of them.

    Args:
        answers: Accepted ones.
        documents: All of the row.
        kept: Those that stand in its prompt, one of them perhaps shortened.
    """
    return _stands(answers, _texts(documents)) and not _stands(answers, _texts(kept))


def lost_in_prompt(
    tokenizer: PreTrainedTokenizerBase, whole: Sequence[int], kept: Sequence[int], answers: Sequence[str]
) -> bool:
    """The same of a prompt that was cut at its left, as token ids; what stands in a cut word does not count."""
    if len(whole) == len(kept):
        return False
    before, after = (str(tokenizer.decode(list(ids), skip_special_tokens=True)) for ids in (whole, kept))
    return _stands(answers, [before]) and not _stands(answers, [after])


def prompt_and_response(input_ids: Sequence[int], labels: Sequence[Any]) -> tuple[list[int], list[int]]:
    """The tokens before the first response, and those of the responses."""
    first = next((i for i, label in enumerate(labels) if label != -100), len(labels))
    return list(input_ids[:first]), [token for token, label in zip(input_ids, labels, strict=True) if label != -100]


def _texts(documents: Iterable[Document]) -> list[str]:
    return [text for document in documents for text in (document.title, document.text) if text]


def _stands(answers: Sequence[str], texts: Sequence[str]) -> bool:
    return any(contains(text, answer) for answer in answers if answer.strip() for text in texts)
