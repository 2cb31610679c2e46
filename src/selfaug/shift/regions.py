"""Regions: the part of a prompt or text that each token belongs to.

The pieces of a prompt are the texts that the renderer inserts. Their positions are exact: the same messages are
rendered a second time with place holders for their contents, and everything around those belongs to the template.
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
template's own tokens, blank lines, BOS, the answer cue and all that belongs to no known piece; ``boundary``: the last
token before a response; ``response``; ``general_text``: text that is not part of the task."""

_HOLDER = "\ue0f3{}\ue0f4"  # private-use characters do not occur in ordinary texts and templates


@dataclass(frozen=True)
class Piece:
    """A piece of a text: the characters from ``start`` up to ``end`` (excluded), and their region."""

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
    """Return the region of each token of an encoded record.

    Args:
        tokenizer: Tokenizer that encoded the record.
        renderer: Renderer that laid out the prompt.
        record: Record with system text and question.
        documents: Documents that fit, as :func:`selfaug.data.fit.fit_record` returns them.
        labels: Labels of the encoded row, -100 on the prompt.
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
    """Return the region of each token of an encoded conversation; user messages are ``question``.

    Documents are found where the renderer put them into the first user turn. Messages of tools are ``other``, as is the
    whole prompt where a template changes messages.

    Args:
        tokenizer: Tokenizer that encoded the conversation.
        renderer: Renderer that laid out the messages.
        conversation: Conversation with the messages.
        documents: Documents that fit.
        input_ids: Token ids of the encoded row.
        labels: Labels of the encoded row.
    """
    item = replace(conversation, documents=tuple(documents))
    messages = renderer.conversation_messages(item)
    source = renderer.chat_template if renderer.mode == "chat" else layout.plain_template(tokenizer)
    template = ChatTemplate(tokenizer, source, conversation.tools, kwargs=renderer.chat_template_kwargs)
    empty = [{**message, "content": _HOLDER.format(number)} for number, message in enumerate(messages)]
    text, around = template.try_render(messages), template.try_render(empty)
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
    whole_regions = token_regions(tokenizer, text or "", pieces, bos=False)
    whole_ids = text_ids(tokenizer, text or "")
    regions = ["other"] * len(input_ids)
    # Turns that were tokenised separately may differ at their edges; all other tokens are the same, in the same order.
    for match in SequenceMatcher(None, whole_ids, list(input_ids), autojunk=False).get_matching_blocks():
        regions[match.b : match.b + match.size] = whole_regions[match.a : match.a + match.size]
    return by_labels(regions, labels)


def by_labels(regions: Sequence[str], labels: Sequence[int]) -> list[str]:
    """Return ``regions`` with trained tokens as ``response``, and the token before each response as ``boundary``."""
    named = ["response" if label != -100 else region for region, label in zip(regions, labels, strict=True)]
    for t, (now, then) in enumerate(pairwise(labels)):
        if now == -100 and then != -100:
            named[t] = "boundary"
    return named


def prompt_pieces(
    tokenizer: PreTrainedTokenizerBase,
    renderer: Renderer,
    record: Record,
    documents: Sequence[Document],
    text: str,
) -> list[Piece]:
    """Return the pieces of the rendered prompt (system text, documents, question) in order, without overlaps.

    There are none where a chat template changes more of the messages than white space at their ends.
    """
    messages = renderer.messages(record, documents)
    empty = [{**message, "content": _HOLDER.format(number)} for number, message in enumerate(messages)]
    around = _render(tokenizer, renderer, empty)
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
    """Return where each content begins in ``text``; ``None`` unless the contents in ``around`` give ``text``."""
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
    """Return the pieces of one message's content, with positions from its start."""
    if role == "system":
        return [Piece(0, len(content), "system")]
    question = renderer.question.format(question=renderer.escape(record.question.strip()))
    parts = [(block, "documents") for block in layout.blocks(renderer, documents)]
    if renderer.question_position in ("before", "both"):
        parts.insert(0, (question, "question"))
    if renderer.question_position in ("after", "both"):
        parts.append((question, "question"))
    user = renderer.user_text(record, documents)
    # Where the template takes no system message, the system text opens the user's turn, before documents and question.
    folded = len(content.rstrip()) - len(user.strip())
    pieces = [Piece(0, len(content[:folded].rstrip()), "system")] if folded > 0 else []
    at = folded - (len(user) - len(user.lstrip()))
    for part, region in parts:
        start, end = max(at, 0), min(at + len(part), len(content))
        pieces.append(Piece(start, end, region))
        at += len(part) + len("\n\n")
    return pieces


def token_regions(tokenizer: PreTrainedTokenizerBase, text: str, pieces: Sequence[Piece], *, bos: bool) -> list[str]:
    """Return the region of each token of ``text``: that of most of its characters, or ``other`` outside all pieces.

    A token that spans an edge belongs to the piece with more of its characters, the first among equals. Slow tokenizers
    give no offsets. For them the tokens up to each edge are counted, which may be one token off.
    """
    ids = text_ids(tokenizer, text, bos=bos)
    if not tokenizer.is_fast:
        return _by_prefixes(tokenizer, text, pieces, len(ids), bos)
    offsets = tokenizer(text, add_special_tokens=bos, return_offsets_mapping=True)["offset_mapping"][: len(ids)]
    return [_region(text, start, end, pieces) for start, end in offsets]


def _region(text: str, start: int, end: int, pieces: Sequence[Piece]) -> str:
    if start == end:  # BOS, or white space that a tokenizer leaves out of its offsets
        return next((piece.region for piece in pieces if piece.start < start < piece.end), "other")
    # The space before a word is part of its token, and does not decide its region.
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
