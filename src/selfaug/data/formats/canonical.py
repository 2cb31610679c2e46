"""The project's own rows: ``question``, ``documents``, ``answer``; or ``messages``, also as ShareGPT writes them.

    {"question": "...", "documents": [{"title": "...", "text": "...", "id": "...", "score": 1.5}], "answer": "..."}
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}], "system": "..."}

``answer`` may be a list of accepted texts, of which the first is trained. Optional: ``id``, ``system``,
``answerable`` (false with no ``answer`` trains the abstention text). One file may hold both kinds of row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from selfaug.data.fields import Fields
from selfaug.data.record import Item, Where, parse_conversation, parse_record

__all__ = ["SHAREGPT", "columns", "matches", "parse", "parse_sharegpt", "shared"]

SHAREGPT = frozenset(("conversations", "conversation", "messages", "system", "tools", "documents", "id"))
_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model", "bot", "function_call"), "assistant"),
    **dict.fromkeys(("observation", "tool", "function", "function_response", "tool_response", "ipython"), "tool"),
    **dict.fromkeys(("system", "developer"), "system"),
}


def matches(row: Mapping[str, Any]) -> bool:
    """Tell whether a row has ``messages``, or a ``question``; other formats are tried first."""
    return "messages" in row or "question" in row


def columns(row: Mapping[str, Any]) -> frozenset[str]:
    """Return the columns that are read of a conversation or record."""
    if row.get("messages") is not None and row.get("question") is None:
        return frozenset(("messages", "documents", "tools", "system", "id"))
    return frozenset(("question", "documents", "answer", "id", "system", "answerable"))


def parse(row: Mapping[str, Any], where: Where, needs_documents: bool) -> Item:
    """Return the record or conversation of a row; see :func:`selfaug.data.record.parse_record`."""
    if row.get("messages") is not None and row.get("question") is None:
        return parse_conversation(row, where)
    return parse_record(row, where, needs_documents=needs_documents)


def shared(row: Mapping[str, Any]) -> bool:
    """Tell whether a row has turns with ``from`` and ``value``, or turns in ``conversations``."""
    turns = next((row[key] for key in ("conversations", "conversation", "messages") if row.get(key) is not None), None)
    if "messages" not in row or row["messages"] is None:
        return isinstance(turns, list)
    return isinstance(turns, list) and any(isinstance(turn, Mapping) and "from" in turn for turn in turns)


def parse_sharegpt(row: Mapping[str, Any], where: Where, needs_documents: bool) -> Item:
    """Return the conversation of a row in the ShareGPT format.

    Raises:
        RowError: If a turn has no known role, or what :func:`selfaug.data.record.parse_conversation` refuses.
    """
    fields = Fields(row, where)
    key = next((key for key in ("conversations", "conversation", "messages") if row.get(key) is not None), "messages")
    messages = [_message(turn) for turn in fields.objects(key, "turns") or []]
    return parse_conversation({**row, "messages": messages}, where, key)


def _message(turn: Fields) -> dict[str, Any]:
    at = "from" if turn.get("from") is not None else "role"
    speaker = turn.text(at)
    role = _ROLES.get(speaker.strip().lower())
    if role is None:
        raise turn.error(at, f"one of {', '.join(_ROLES)}")
    kept = {key: value for key, value in turn.row.items() if key not in ("from", "value")}
    message = {**kept, "role": role, "content": turn.get("value") if "value" in turn.row else turn.get("content")}
    if speaker.strip().lower() == "function_call":
        try:
            call = json.loads(turn.text("value"))
        except (ValueError, RecursionError):
            call = None
        calls = call if isinstance(call, list) else [call]
        if not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls):
            raise turn.error("value", "the JSON text of a call: an object with name and arguments")
        message |= {"content": "", "tool_calls": [{"type": "function", "function": dict(call)} for call in calls]}
    return message
