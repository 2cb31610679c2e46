"""The project's own rows: ``question``, ``documents``, ``answer``; or ``messages``.

    {"question": "...", "documents": [{"title": "...", "text": "...", "id": "...", "score": 1.5}], "answer": "..."}
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}

``answer`` may be a list of accepted texts, of which the first is trained. Optional: ``id``, ``system``,
``answerable`` (false with no ``answer`` trains the abstention text). One file may hold both kinds of row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfaug.data.record import Item, Where, parse_conversation, parse_record


def matches(row: Mapping[str, Any]) -> bool:
    """A row with ``messages``, or with a ``question`` that no other format claimed."""
    return "messages" in row or "question" in row


def parse(row: Mapping[str, Any], where: Where, needs_documents: bool) -> Item:
    """The record or conversation; see :func:`selfaug.data.record.parse_record`."""
    if row.get("messages") is not None and row.get("question") is None:
        return parse_conversation(row, where)
    return parse_record(row, where, needs_documents=needs_documents)
