"""Detects rows whose answer was lost when documents were dropped or a prompt was cut."""

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
    """Check a value of ``on_lost_answer``.

    Raises:
        ConfigError: If it is unknown.
    """
    known = get_args(OnLostAnswer)
    if value not in known:
        raise ConfigError(
            f"on_lost_answer={value!r} is not known.{nearest(str(value), known)}",
            "choose keep (train the answer all the same), skip (leave the row out) or abstain (train the abstention).",
        )


def accepted_answers(item: Item) -> tuple[str, ...]:
    """Return a record's accepted answers, or the texts of a conversation's assistant turns."""
    if isinstance(item, Record):
        return item.answers
    assert isinstance(item, Conversation)
    return tuple(str(message.get("content") or "") for message in item.messages if message["role"] == "assistant")


def lost_in_documents(answers: Sequence[str], documents: Iterable[Document], kept: Iterable[Document]) -> bool:
    """Tell whether a title or text of the documents contains an answer, but none of the kept ones does.

    Args:
        answers: Accepted answers.
        documents: All documents of the row.
        kept: Documents of its prompt, one of them perhaps shortened.
    """
    return _contain(_texts(documents), answers) and not _contain(_texts(kept), answers)


def lost_in_prompt(
    tokenizer: PreTrainedTokenizerBase, whole: Sequence[int], kept: Sequence[int], answers: Sequence[str]
) -> bool:
    """Tell whether a whole prompt contains an answer, but what was kept of it does not; both as token ids."""
    if len(whole) == len(kept):
        return False
    before, after = (str(tokenizer.decode(list(ids), skip_special_tokens=True)) for ids in (whole, kept))
    return _contain([before], answers) and not _contain([after], answers)


def prompt_and_response(input_ids: Sequence[int], labels: Sequence[Any]) -> tuple[list[int], list[int]]:
    """Return the tokens before the first response, and the tokens of all responses."""
    first = next((i for i, label in enumerate(labels) if label != -100), len(labels))
    return list(input_ids[:first]), [token for token, label in zip(input_ids, labels, strict=True) if label != -100]


def _texts(documents: Iterable[Document]) -> list[str]:
    return [text for document in documents for text in (document.title, document.text) if text]


def _contain(texts: Sequence[str], answers: Sequence[str]) -> bool:
    return any(contains(text, answer) for answer in answers if answer.strip() for text in texts)
