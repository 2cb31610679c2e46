"""The part of a prompt, or the text, that each token belongs to.

The prompt's pieces are those that the renderer laid out: their characters are known exactly, as the same messages are
rendered a second time with place holders in their stead, and what stands around those is the template's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from selfaug.data import layout
from selfaug.data.template import ChatTemplate
from selfaug.data.tokens import text_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selfaug.data.prompts import Renderer
    from selfaug.data.record import Conversation, Document, Record

__all__ = [
    "PROMPT_REGIONS", "REGIONS", "Piece", "by_labels", "conversation_regions", "prompt_pieces", "record_regions",
    "token_regions",
]  # fmt: skip

PROMPT_REGIONS = ("system", "documents", "question", "other")
REGIONS = (*PROMPT_REGIONS, "boundary", "response", "general_text")
"""``system`` text; ``documents`` with their headings; ``question`` with the words of its line; ``other``: the
template's marks, blank lines, BOS and answer cue, and what no piece is known of; ``boundary``: the last token before a
response; ``response``; ``general_text``: text that is no part of the task."""

_HOLDER = "\ue0f3{}\ue0f4"  # private-use characters: no sane text or template holds them


@dataclass(frozen=True)
class Piece:
    """Characters ``start`` to ``end`` (excluded) of a text belong to ``region``."""

    start: int
    end: int
    region: str


def record_regions(
    tokenizer: PreTrainedTokenizerBase,
    renderer: Renderer,
    record: Record,
    documents: Sequence[Document],
    labels: Sequence[int],
) -> list[str]:
    """The region of each token of an encoded record.

    Args:
        tokenizer: The one that it was encoded with.
        renderer: Likewise.
        record: Gives system text and question.
        documents: Those that fitted, as :func:`selfaug.data.fit.fit_record` gives them.
        labels: Of the encoded row: -100 on the prompt.
    """
    text = renderer.prompt_text(tokenizer, record, documents)
    pieces = prompt_pieces(tokenizer, renderer, record, documents, text)
    prompt = token_regions(tokenizer, text, pieces, bos=renderer.mode == "plain")
    return by_labels([*prompt, *["response"] * (len(labels) - len(prompt))], labels)


def conversation_regions(
    tokenizer: PreTrainedTokenizerBase,
    renderer: Renderer,
    conversation: Conversation,
    documents: Sequence[Document],
    input_ids: Sequence[int],
    labels: Sequence[int],
) -> list[str]:
    """The region of each token of an encoded conversation: ``question`` is what the user says, ``system`` likewise.

    Documents are known where the renderer put them into the first user turn; tools' messages are ``other``. Where a
    template changes messages the prompt is ``other``.

    Args:
        tokenizer: The one that it was encoded with.
        renderer: Likewise.
        conversation: Gives the messages.
        documents: Those that fitted.
        input_ids: Of the encoded row.
        labels: Likewise.
    """
    item = replace(conversation, documents=tuple(documents))
    messages = renderer.conversation_messages(item)
    source = renderer.chat_template if renderer.mode == "chat" else layout.plain_template(tokenizer)
    template = ChatTemplate(tokenizer, source, conversation.tools, kwargs=renderer.chat_template_kwargs)
    held = [{**message, "content": _HOLDER.format(number)} for number, message in enumerate(messages)]
    text, around = template.try_render(messages), template.try_render(held)
    contents = [str(message.get("content") or "") for message in messages]
    starts, shown = None, contents
    for shown in (contents, [content.strip() for content in contents]):
        starts = None if text is None or around is None else _starts(around, shown, text)
        if starts is not None:
            break
    opening = 0 if renderer.template_documents else len("\n\n".join(layout.blocks(renderer, documents)))
    pieces: list[Piece] = []
    for start, content, message in zip(starts or (), shown, messages, strict=False):
        role, end = message.get("role"), start + len(content)
        if role == "system":
            pieces.append(Piece(start, end, "system"))
        elif role == "user":
            pieces += [Piece(start, start + opening, "documents"), Piece(start + opening, end, "question")]
            opening = 0
    found = token_regions(tokenizer, text or "", pieces, bos=False)
    known = text_ids(tokenizer, text or "")
    regions = ["other"] * len(input_ids)
    # Turns that were tokenised apart have other tokens at their edges; all others stand in the same order.
    for match in SequenceMatcher(None, known, list(input_ids), autojunk=False).get_matching_blocks():
        regions[match.b : match.b + match.size] = found[match.a : match.a + match.size]
    return by_labels(regions, labels)


def by_labels(regions: Sequence[str], labels: Sequence[int]) -> list[str]:
    """``regions`` with the tokens that are trained named ``response``, and each last one before them ``boundary``."""
    found = ["response" if label != -100 else region for region, label in zip(regions, labels, strict=True)]
    for t, (now, then) in enumerate(pairwise(labels)):
        if now == -100 and then != -100:
            found[t] = "boundary"
    return found


def prompt_pieces(
    tokenizer: PreTrainedTokenizerBase,
    renderer: Renderer,
    record: Record,
    documents: Sequence[Document],
    text: str,
) -> list[Piece]:
    """Where system text, each document and the question stand in the rendered prompt, in order, not overlapping.

    Empty where a chat template changes more of the messages than white space at their ends: no guess is made.
    """
    messages = renderer.messages(record, documents)
    held = [{**message, "content": _HOLDER.format(number)} for number, message in enumerate(messages)]
    around = _render(tokenizer, renderer, held)
    contents: list[str] = [message["content"] for message in messages]
    for shown in (contents, [content.strip() for content in contents]):
        starts = _starts(around, shown, text)
        if starts is not None:
            return [
                Piece(start + piece.start, start + piece.end, piece.region)
                for start, content, message in zip(starts, shown, messages, strict=True)
                for piece in _of_message(renderer, record, documents, content, str(message["role"]))
            ]
    return []


def _render(tokenizer: PreTrainedTokenizerBase, renderer: Renderer, messages: Sequence[dict[str, Any]]) -> str:
    if renderer.mode == "plain":
        return "\n\n".join(message["content"] for message in messages) + f"\n{renderer.answer_cue}"
    template = ChatTemplate(tokenizer, renderer.chat_template, kwargs=renderer.chat_template_kwargs)
    return template.render(messages, generation=True)


def _starts(around: str, contents: Sequence[str], text: str) -> list[int] | None:
    """Where each content begins in ``text``, if ``text`` is ``around`` with the contents in their holders' places."""
    starts, built, rest = [], "", around
    for number, content in enumerate(contents):
        before, holder, rest = rest.partition(_HOLDER.format(number))
        if not holder:
            return None
        starts.append(len(built) + len(before))
        built += before + content
    return starts if built + rest == text else None


def _of_message(
    renderer: Renderer, record: Record, documents: Sequence[Document], content: str, role: str
) -> list[Piece]:
    """The pieces of one message's content, counted from its start."""
    if role == "system":
        return [Piece(0, len(content), "system")]
    question = renderer.question.format(question=renderer.escape(record.question.strip()))
    parts = [(block, "documents") for block in layout.blocks(renderer, documents)]
    if renderer.question_position in ("before", "both"):
        parts.insert(0, (question, "question"))
    if renderer.question_position in ("after", "both"):
        parts.append((question, "question"))
    user = renderer.user_text(record, documents)
    # A system text that the template refuses opens the user's turn; what it asks stands at the end.
    folded = len(content.rstrip()) - len(user.strip())
    pieces = [Piece(0, len(content[:folded].rstrip()), "system")] if folded > 0 else []
    at = folded - (len(user) - len(user.lstrip()))
    for part, region in parts:
        start, end = max(at, 0), min(at + len(part), len(content))
        pieces.append(Piece(start, end, region))
        at += len(part) + len("\n\n")
    return pieces


def token_regions(tokenizer: PreTrainedTokenizerBase, text: str, pieces: Sequence[Piece], *, bos: bool) -> list[str]:
    """The region of each token of ``text``: that of most of its characters, ``other`` where no piece has any.

    A token over an edge goes to the piece with more of it, the first among equals. Tokenizers without offsets (not
    compiled ones) are asked for the number of tokens up to each edge instead: there an edge may be a token off.
    """
    ids = text_ids(tokenizer, text, bos=bos)
    if not tokenizer.is_fast:
        return _by_prefixes(tokenizer, text, pieces, len(ids), bos)
    offsets = tokenizer(text, add_special_tokens=bos, return_offsets_mapping=True)["offset_mapping"][: len(ids)]
    return [_region(text, start, end, pieces) for start, end in offsets]


def _region(text: str, start: int, end: int, pieces: Sequence[Piece]) -> str:
    if start == end:  # white space, where a tokenizer leaves it out of its offsets; BOS, at the text's edge
        return next((piece.region for piece in pieces if piece.start < start < piece.end), "other")
    # Space in front of a word is part of its token, and does not decide whose it is.
    while start < end - 1 and text[start].isspace():
        start += 1
    best, most = "other", 0
    for piece in pieces:
        shared = min(end, piece.end) - max(start, piece.start)
        if shared > most:
            best, most = piece.region, shared
    return best


def _by_prefixes(
    tokenizer: PreTrainedTokenizerBase, text: str, pieces: Sequence[Piece], count: int, bos: bool
) -> list[str]:
    regions = ["other"] * count
    for piece in pieces:
        first, last = (min(len(text_ids(tokenizer, text[:at], bos=bos)), count) for at in (piece.start, piece.end))
        regions[first:last] = [piece.region] * (last - first)
    return regions
