"""Retrieved passages beside each question, as DPR, Fusion-in-Decoder, Self-RAG and FlashRAG write them.

    {"id": "...", "question": "...", "answers": ["...", ...],
     "ctxs": [{"id": "wiki:1", "title": "...", "text": "...", "score": "81.9", "has_answer": true}, ...]}
    {"id": "...", "question": "...", "golden_answers": ["...", ...]}

Answers: ``answers``, ``golden_answers`` or ``answer``. A passage holds its text as ``text``, ``contents`` (FlashRAG:
the first line is the title) or ``content``; its score may be a number or a number in quotes. FlashRAG's saved results
keep the passages in ``output.retrieval_result``. Rows without passages need a corpus.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfaug.data.fields import Fields, Where
from selfaug.data.record import Document, Record, require_documents

_ANSWERS = ("answers", "golden_answers", "answer")


def matches(row: Mapping[str, Any]) -> bool:
    """Passages under ``ctxs``, or a question with ``golden_answers`` or a plain list of ``answers``."""
    if "ctxs" in row or "golden_answers" in row:
        return True
    return "question" in row and isinstance(row.get("answers"), list) and not {"context", "documents"} & row.keys()


def parse(row: Mapping[str, Any], where: Where, needs_documents: bool) -> Record:
    """The record of one question."""
    fields = Fields(row, where)
    answers = next((found for key in _ANSWERS if (found := fields.texts(key))), None)
    if answers is None:
        raise fields.error("answers", "at least one accepted answer under answers, golden_answers or answer")
    passages = fields.objects("ctxs", "passages")
    if passages is None and isinstance(fields.get("output"), Mapping):
        passages = Fields(fields.get("output"), where, "output").objects("retrieval_result", "passages")
    documents = tuple(passage(p) for p in passages or [])
    return Record(
        question=fields.text("question"),
        documents=require_documents(fields, documents, "ctxs", needs_documents),
        answers=answers,
        id=fields.identifier(),
    )


def passage(fields: Fields) -> Document:
    """The document of a passage object in any of the spellings above; corpora use the same.

    Raises:
        RowError: If it has no text.
    """
    title = fields.optional_text("title", blank=True)
    if fields.get("text") is None and fields.get("contents") is not None:
        head, _, rest = fields.text("contents").partition("\n")
        if title is None and rest.strip():
            title, text = head.strip().removeprefix('"').removesuffix('"'), rest
        else:
            text = fields.text("contents")
    else:
        text = fields.text("content" if fields.get("text") is None and fields.get("content") is not None else "text")
    name = fields.identifier() or fields.identifier("_id")
    return Document(text, (title or "").strip() or None, name, fields.number("score", from_text=True))
