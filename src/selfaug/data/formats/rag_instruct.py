"""RAG-Instruct: instructions with ten passages each, of which some were the source of the answer.

    {"question": "...", "answer": "...", "documents": ["passage", ...]}

The passages are plain texts, without titles or scores, in no order of relevance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfaug.data.fields import Fields, Where
from selfaug.data.record import Document, Record, require_documents


def matches(row: Mapping[str, Any]) -> bool:
    """A question whose ``documents`` are plain texts."""
    documents = row.get("documents")
    return "question" in row and isinstance(documents, list) and any(isinstance(item, str) for item in documents)


def parse(row: Mapping[str, Any], where: Where, needs_documents: bool) -> Record:
    """The record of one instruction."""
    fields = Fields(row, where)
    values = fields.items("documents", "texts") or []
    paths = [f"documents[{i}]" for i in range(len(values))]
    documents = tuple(Document(Fields({p: v}, where).text(p)) for p, v in zip(paths, values, strict=True))
    return Record(
        question=fields.text("question"),
        documents=require_documents(fields, documents, "documents", needs_documents),
        answers=(fields.text("answer"),),
        id=fields.identifier(),
    )
