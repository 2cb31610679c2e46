"""SQuAD v1.1 and v2, as released (articles) and as columns (one question a row).

    {"title": "...", "paragraphs": [{"context": "...", "qas": [
        {"id": "...", "question": "...", "answers": [{"text": "...", "answer_start": 0}], "is_impossible": false}]}]}
    {"id": "...", "title": "...", "context": "...", "question": "...",
     "answers": {"text": ["..."], "answer_start": [0]}}

The released file wraps its articles in ``{"version": ..., "data": [...]}``. The paragraph is the only document.
Version 2: a question with ``is_impossible``, or in the columns one with no answer, is not answerable.
``plausible_answers`` are wrong answers and are not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from selfaug.data.fields import Fields, RowError, Where, shown
from selfaug.data.record import Document, Record


def matches(row: Mapping[str, Any]) -> bool:
    """An article with ``paragraphs``, or a question with ``context`` text and ``answers``."""
    return "paragraphs" in row or (isinstance(row.get("context"), str) and "answers" in row)


def expand(row: Mapping[str, Any], where: Where) -> Iterator[tuple[Where, Mapping[str, Any] | RowError]]:
    """One row per question of an article; a row that is a question already comes back as it is."""
    if "paragraphs" not in row:
        yield where, row
        return
    try:
        article = Fields(row, where)
        title = article.optional_text("title", blank=True)
        paragraphs = article.items("paragraphs", "paragraphs") or []
        if not paragraphs:
            raise article.error("paragraphs", "at least one paragraph")
    except RowError as error:
        yield where, error
        return
    for p, paragraph in enumerate(paragraphs):
        inside = where.within(f"paragraphs[{p}]")
        try:
            fields = Fields(paragraph, inside)
            questions = fields.items("qas", "questions") or []
        except RowError as error:
            yield inside, error
            continue
        for q, question in enumerate(questions):
            place = inside.within(f"qas[{q}]")
            if isinstance(question, Mapping):
                yield place, {**question, "title": title, "context": fields.get("context")}
            else:
                yield place, RowError(place, "", "an object", shown(question))


def parse(row: Mapping[str, Any], where: Where, needs_documents: bool) -> Record:
    """The record of one question."""
    fields = Fields(row, where)
    answers = fields.get("answers")
    if isinstance(answers, Mapping):
        accepted = Fields(answers, where, "answers").texts("text") or ()
        impossible = bool(fields.flag("is_impossible")) or not accepted
    else:
        accepted = tuple(dict.fromkeys(a.text("text") for a in fields.objects("answers", "answers") or []))
        impossible = bool(fields.flag("is_impossible"))
        if not accepted and not impossible:
            raise fields.error("answers", "at least one answer (or is_impossible: true)")
    # Titles of the release are page names: Super_Bowl_50.
    title = (fields.optional_text("title", blank=True) or "").replace("_", " ").strip() or None
    return Record(
        question=fields.text("question"),
        documents=(Document(fields.text("context"), title),),
        answers=() if impossible else accepted,
        id=fields.identifier(),
        answerable=not impossible,
    )
