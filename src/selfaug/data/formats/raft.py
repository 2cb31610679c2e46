"""RAFT, as the recipe of the Gorilla project writes it: an oracle chunk among distractors, and a reasoned answer.

    {"id": "seed_task_0", "type": "general", "question": "...",
     "context": {"title": [["placeholder_title", ...]], "sentences": [["chunk", ...]]},
     "oracle_context": "chunk", "cot_answer": "... <ANSWER>: ...", "answer": "...", "instruction": "..."}

``context`` holds lists of lists; a document is one chunk. The answer trained is ``cot_answer`` (or ``answer`` where
that is missing), and what follows its ``<ANSWER>:`` is accepted too. ``instruction`` repeats documents and question in
one text and is not read. A chunk equal to the oracle has score 1 and any other 0, so that a row too long for the model
loses distractors first; RAFT leaves the oracle out of some rows on purpose, which are kept as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfaug.data.fields import Fields, Where
from selfaug.data.record import Document, Record, require_documents

_TAG = "<ANSWER>:"
_PLACEHOLDER = "placeholder_title"


def matches(row: Mapping[str, Any]) -> bool:
    """A question with ``cot_answer`` or ``oracle_context``."""
    return "question" in row and ("cot_answer" in row or "oracle_context" in row)


def parse(row: Mapping[str, Any], where: Where, needs_documents: bool) -> Record:
    """The record of one triplet of question, answer and documents."""
    fields = Fields(row, where)
    trained = fields.optional_text("cot_answer")
    if trained is None and fields.get("answer") is None:
        raise fields.error("cot_answer", "non-empty text (or an answer)")
    answers = (*((trained,) if trained else ()), *(fields.texts("answer") or ()))
    final = answers[0].rpartition(_TAG)[2].strip() if answers and _TAG in answers[0] else ""
    context = Fields(fields.get("context") if fields.get("context") is not None else {}, where, "context")
    chunks = _flat(context, "sentences")
    titles = [title for _, title in _flat(context, "title")]
    oracle = fields.optional_text("oracle_context", blank=True)
    documents = tuple(
        Document(
            _text(chunk, where, path),
            _title(titles[i], where) if i < len(titles) else None,
            score=float(chunk == oracle) if oracle else None,
        )
        for i, (path, chunk) in enumerate(chunks)
    )
    return Record(
        question=fields.text("question"),
        documents=require_documents(fields, documents, "context", needs_documents),
        answers=tuple(dict.fromkeys((*answers, *((final,) if final else ())))),
        id=fields.identifier(),
    )


def _flat(context: Fields, key: str) -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for i, group in enumerate(context.items(key, "lists of texts") or []):
        path = f"context.{key}[{i}]"
        flat += [(f"{path}[{j}]", item) for j, item in enumerate(group)] if isinstance(group, list) else [(path, group)]
    return flat


def _text(value: object, where: Where, path: str) -> str:
    return Fields({path: value}, where).text(path)


def _title(value: object, where: Where) -> str | None:
    title = Fields({"title": value}, where, "context").optional_text("title", blank=True)
    return None if title in (None, "", _PLACEHOLDER) else title
