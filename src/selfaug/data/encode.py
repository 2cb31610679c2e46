"""Encodes records and conversations as rows of token ids and labels within the length limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from selfaug.common.errors import DataError
from selfaug.data.fit import FitResult, fit_documents, fit_ids, fit_record
from selfaug.data.layout import plain_template
from selfaug.data.lengths import LeftOut, LengthReport
from selfaug.data.lost_answers import (
    SKIPPED,
    OnLostAnswer,
    accepted_answers,
    check_on_lost_answer,
    lost_in_documents,
    lost_in_prompt,
    prompt_and_response,
)
from selfaug.data.masks import conversation_labels
from selfaug.data.record import Conversation, Document, Record
from selfaug.data.tokens import RecordTokens, aligned_tokens, tokens_of_records

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selfaug.data.prompts import Renderer

__all__ = ["Encoded", "LengthReport", "aligned_tokens", "conversation_tokens", "encode"]

_BATCH = 256  # number of items whose texts are tokenised in one call
_LONGER = "raise --max_length (up to the model's context), or shorten the rows."
_LONGER_OR_CUT = (
    "raise --max_length (up to the model's context), or pass --cut_prompt_left true to cut prompts at their left."
)


@dataclass(frozen=True)
class Encoded:
    """Encoded rows and the length report.

    Args:
        rows: Objects ``{"input_ids": list[int], "labels": list[int]}`` in the order of the items, which TRL takes as a
            tokenised data set.
        report: Length report.
        places: Index of each row's item among the items.
    """

    rows: list[dict[str, Any]]
    report: LengthReport
    places: list[int]


def encode(
    items: Iterable[Record | Conversation],
    tokenizer: PreTrainedTokenizerBase,
    renderer: Renderer,
    *,
    max_length: int | None,
    cut_prompt_left: bool = False,
    on_bad_row: Literal["error", "skip"] = "error",
    on_lost_answer: OnLostAnswer = "keep",
    progress: Callable[[int], None] | None = None,
    first: int = 1,
) -> Encoded:
    """Return the token ids and labels of each item that fits ``max_length``, and the length report.

    Documents are dropped or shortened so that a row fits (:func:`selfaug.data.fit.fit_record`); a row without
    documents that is too long is left out, or cut.

    Args:
        items: Records, conversations or both.
        tokenizer: Tokenizer that ``renderer`` was made for.
        renderer: Renderer of the prompts.
        max_length: Largest number of tokens of prompt and response together; ``None`` for no limit.
        cut_prompt_left: Whether the prompt of a row without documents is cut from the left where it is too long.
        on_bad_row: ``error`` to stop at an item without exact token ids (one that the chat template refuses, for
            example), ``skip`` to leave it out and count it.
        on_lost_answer: Treatment of a row whose accepted answers were in its documents, but not in what fits of them:
            ``keep`` trains the answer all the same, ``skip`` leaves the row out, ``abstain`` trains the renderer's
            abstention text instead (and leaves out conversations and cut prompts, which cannot abstain).
        progress: Function called after each item with the number of items done.
        first: Number of the first item, by which messages name rows.

    Raises:
        ConfigError: If the tokenizer has another chat template than the renderer's.
        DataError: If there is no EOS token, or an item has no exact token ids and ``on_bad_row`` is ``error``.
    """
    renderer.check(tokenizer)
    check_on_lost_answer(on_lost_answer)
    report = LengthReport(max_length, on_lost_answer=on_lost_answer)
    rows: list[dict[str, Any]] = []
    places: list[int] = []
    for place, (item, whole) in enumerate(_with_tokens(items, tokenizer, renderer)):
        report.rows += 1
        report.escaped.update(renderer.count_specials(item))
        name = f"row {first + place}" if item.id is None else f"row {first + place} ({item.id})"
        try:
            notes: Counter[str] = Counter()
            if isinstance(whole, DataError):
                raise whole
            result = _fit(item, tokenizer, renderer, max_length, cut_prompt_left, notes, whole)
            if isinstance(result, FitResult) and result.answer_lost:
                report.answers_lost += 1
                if on_lost_answer == "skip":
                    result = LeftOut(name, SKIPPED, _LONGER)
                elif on_lost_answer == "abstain":
                    result = _abstaining(item, result, tokenizer, renderer, max_length, notes)
                    report.abstained += isinstance(result, FitResult)
        except DataError as error:
            if on_bad_row == "error":
                raise DataError(f"{name}: {error.message}", error.hint) from error
            result = LeftOut(name, error.message, error.hint)
        if isinstance(result, LeftOut):
            report.left_out.append(replace(result, row=name))
        else:
            rows.append({"input_ids": result.input_ids, "labels": result.labels})
            places.append(place)
            _count(report, item, result)
            for name_of, count in notes.items():
                setattr(report, name_of, getattr(report, name_of) + count)
        if progress is not None:
            progress(place + 1)
    return Encoded(rows, report, places)


def _with_tokens(
    items: Iterable[Record | Conversation], tokenizer: PreTrainedTokenizerBase, renderer: Renderer
) -> Iterator[tuple[Record | Conversation, RecordTokens | DataError | None]]:
    """Yield each item, a record together with its tokens before fitting."""
    rest = iter(items)
    while batch := list(islice(rest, _BATCH)):
        tokens = iter(tokens_of_records(renderer, tokenizer, [item for item in batch if isinstance(item, Record)]))
        for item in batch:
            yield item, next(tokens) if isinstance(item, Record) else None


def conversation_tokens(
    conversation: Conversation,
    tokenizer: PreTrainedTokenizerBase,
    renderer: Renderer,
    documents: Sequence[Document] | None = None,
    notes: Counter[str] | None = None,
) -> tuple[list[int], list[int]]:
    """Return ``input_ids`` and ``labels`` of a conversation; see :func:`selfaug.data.masks.conversation_labels`.

    Args:
        conversation: Conversation, whose special-token strings are escaped first.
        tokenizer: Tokenizer that ``renderer`` was made for.
        renderer: Renderer of the prompts; without a chat template, turns are ``User:`` and ``Assistant:`` lines.
        documents: Documents in place of the conversation's own.
        notes: Counter that is replaced by the counts of :func:`selfaug.data.masks.conversation_labels`.
    """
    kept = conversation.documents if documents is None else tuple(documents)
    item = Conversation(conversation.messages, kept, conversation.id, conversation.tools)
    text = renderer.chat_template if renderer.mode == "chat" else plain_template(tokenizer)
    if conversation.tools and isinstance(tokenizer.chat_template, dict):
        # Of several named templates, transformers picks one by whether there are tools.
        text = None
    placed = [
        {"title": renderer.escape(document.title or ""), "text": renderer.escape(document.text)} for document in kept
    ]
    return conversation_labels(
        tokenizer,
        renderer.conversation_messages(item),
        tools=conversation.tools,
        documents=placed if renderer.template_documents else None,
        chat_template=text,
        chat_template_kwargs=renderer.chat_template_kwargs,
        notes=notes,
    )


def _fit(
    item: Record | Conversation,
    tokenizer: PreTrainedTokenizerBase,
    renderer: Renderer,
    max_length: int | None,
    cut_prompt_left: bool,
    notes: Counter[str],
    whole_row: RecordTokens | None,
) -> FitResult | LeftOut:
    """Return the item's row, or the reason why it does not fit."""
    result: FitResult | None
    if isinstance(item, Record):
        result = fit_record(item, renderer, tokenizer, max_length if item.documents else None, notes, whole_row)
    else:
        result = fit_documents(
            item.documents,
            lambda documents: conversation_tokens(item, tokenizer, renderer, documents, notes),
            tokenizer,
            max_length if item.documents else None,
        )
    if result is None:
        return LeftOut(
            "",
            f"not even the best document's beginning fits beside question and answer in {max_length} tokens",
            _LONGER,
        )
    answers = accepted_answers(item)
    if item.documents:
        cut_any = bool(result.dropped_documents) or result.shortened
        return replace(
            result, answer_lost=cut_any and lost_in_documents(answers, item.documents, result.kept_documents)
        )
    # Models attend strongly to a BOS, so a prompt that is cut keeps it.
    keep_first = int(tokenizer.bos_token_id is not None and result.input_ids[:1] == [tokenizer.bos_token_id])
    cut = fit_ids(result.input_ids, result.labels, max_length, cut_prompt_left, keep_first)
    if cut is None:
        return LeftOut(
            "",
            f"needs {result.whole_tokens} tokens, {max_length} are allowed, and it has no documents to drop",
            _LONGER if cut_prompt_left else _LONGER_OR_CUT,
        )
    whole, kept = prompt_and_response(result.input_ids, result.labels)[0], prompt_and_response(*cut)[0]
    lost = lost_in_prompt(tokenizer, whole, kept, answers)
    return FitResult(*cut, (), (), False, result.whole_tokens, lost)


def _abstaining(
    item: Record | Conversation,
    result: FitResult,
    tokenizer: PreTrainedTokenizerBase,
    renderer: Renderer,
    max_length: int | None,
    notes: Counter[str],
) -> FitResult | LeftOut:
    """Return a row that abstains instead of giving its lost answer; it gets no document back that was dropped."""
    if not isinstance(item, Record) or not item.documents:
        return LeftOut("", f"{SKIPPED}, and only records with documents can be trained to abstain", _LONGER)
    record = replace(item, documents=result.kept_documents, answers=(), answerable=False)
    # The abstention may be longer than the answer was, and cost a further document.
    again = fit_record(record, renderer, tokenizer, max_length, notes)
    if again is None:
        return LeftOut("", f"{SKIPPED}, and the abstention is too long for what did", _LONGER)
    return replace(
        again,
        dropped_documents=(*result.dropped_documents, *again.dropped_documents),
        shortened=result.shortened or again.shortened,
        whole_tokens=result.whole_tokens,
    )


def _count(report: LengthReport, item: Record | Conversation, result: FitResult) -> None:
    labels = np.asarray(result.labels)
    prompt = int(np.count_nonzero(labels == -100))
    report.kept += 1
    report.prompt_tokens.append(prompt)
    report.response_tokens.append(len(result.labels) - prompt)
    report.whole_tokens.append(result.whole_tokens)
    report.aligned_tokens += aligned_tokens(labels)
    report.documents += len(item.documents)
    report.documents_dropped += len(result.dropped_documents)
    report.shortened += result.shortened
    report.prompts_cut += not item.documents and len(result.input_ids) < result.whole_tokens
