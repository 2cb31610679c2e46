"""HotpotQA (and 2WikiMultihopQA, which shares its schema): ten titled paragraphs, two of which support the answer.

As released, and as columns:

    {"_id": "...", "question": "...", "answer": "...", "supporting_facts": [["title", 0], ...],
     "context": [["title", ["sentence", " sentence"]], ...]}
    {"id": "...", "question": "...", "answer": "...", "supporting_facts": {"title": [...], "sent_id": [...]},
     "context": {"title": [...], "sentences": [[...], ...]}}

A document is a paragraph: its sentences joined as they stand (they carry their own spaces). Where supporting facts are
given, a supporting paragraph has score 1 and any other 0, so that a row too long for the model loses distractors first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from selfaug.data.fields import Fields, RowError, Where, shown
from selfaug.data.record import Document, Record, require_documents


def matches(row: Mapping[str, Any]) -> bool:
    """A ``context`` of (title, sentences), as pairs or as two columns."""
    context = row.get("context")
    if isinstance(context, Mapping):
        return "sentences" in context
    return isinstance(context, list) and all(isinstance(pair, Sequence) and len(pair) == 2 for pair in context)


def parse(row: Mapping[str, Any], where: Where, needs_documents: bool) -> Record:
    """The record of one question; its test split, which has no answers, is refused row by row."""
    fields = Fields(row, where)
    support = _supporting_titles(fields)
    documents = []
    for i, (title, sentences) in enumerate(_paragraphs(fields)):
        paragraph = Fields({"title": title, "sentences": sentences}, where, f"context[{i}]")
        parts = paragraph.items("sentences", "sentences") or []
        if not all(isinstance(part, str) for part in parts):
            raise paragraph.error("sentences", "a list of texts")
        text = Fields({"sentences": "".join(parts)}, where, f"context[{i}]").text("sentences")
        name = paragraph.optional_text("title", blank=True) or None
        documents.append(Document(text, name, score=None if support is None else float(name in support)))
    return Record(
        question=fields.text("question"),
        documents=require_documents(fields, tuple(documents), "context", needs_documents),
        answers=(fields.text("answer"),),
        id=fields.identifier("_id") or fields.identifier(),
    )


def _paragraphs(fields: Fields) -> list[tuple[Any, Any]]:
    context = fields.get("context")
    if isinstance(context, Mapping):
        columns = Fields(context, fields.where, "context")
        titles = columns.items("title", "titles") or []
        sentences = columns.items("sentences", "lists of sentences") or []
        if len(titles) != len(sentences):
            raise columns.error("sentences", f"as many entries as titles ({len(titles)})")
        return list(zip(titles, sentences, strict=True))
    pairs = fields.items("context", "[title, sentences] pairs") or []
    for i, pair in enumerate(pairs):
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise RowError(fields.where, fields.name(f"context[{i}]"), "a [title, sentences] pair", shown(pair))
    return [(pair[0], pair[1]) for pair in pairs]


def _supporting_titles(fields: Fields) -> set[str] | None:
    facts = fields.get("supporting_facts")
    if facts is None:
        return None
    if isinstance(facts, Mapping):
        return set(Fields(facts, fields.where, "supporting_facts").texts("title") or ()) or None
    titles = set()
    for fact in fields.items("supporting_facts", "[title, sentence number] pairs") or []:
        if not isinstance(fact, Sequence) or isinstance(fact, str) or len(fact) != 2 or not isinstance(fact[0], str):
            raise fields.error("supporting_facts", "a list of [title, sentence number] pairs")
        titles.add(fact[0])
    return titles or None
