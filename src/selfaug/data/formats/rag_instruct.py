"""RAG-Instruct: instructions with ten passages each, of which some were the source of the answer.

    {"question": "...", "answer": "...", "documents": ["passage", ...]}

The passages are plain texts, without titles or scores, in no order of relevance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfaug.data.record import Record, Where, parse_record


def matches(row: Mapping[str, Any]) -> bool:
    """A question whose ``documents`` are plain texts."""
    documents = row.get("documents")
    return "question" in row and isinstance(documents, list) and any(isinstance(item, str) for item in documents)


def parse(row: Mapping[str, Any], where: Where, needs_documents: bool) -> Record:
    """The record of one instruction: the canonical row, whose documents may be plain texts."""
    return parse_record(row, where, needs_documents=needs_documents)
