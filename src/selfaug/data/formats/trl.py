"""TRL's own rows, checked and passed on as they are: TRL tokenises them (or they are tokens already).

    {"prompt": "..." or [messages], "completion": "..." or [messages]}
    {"text": "..."}
    {"input_ids": [...], "labels": [...]}      labels optional, -100 where nothing is trained

Only the columns that TRL reads are kept. Rows with ``messages`` are conversations here and not among these: TRL alone
would train on every token of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfaug.data.fields import Fields, RowError, Where, shown

KEYS = (
    *("prompt", "completion", "text", "input_ids", "labels", "attention_mask", "completion_mask", "assistant_masks"),
    *("tools", "chat_template_kwargs"),
)
_PER_TOKEN = ("labels", "attention_mask", "completion_mask", "assistant_masks")


def matches(row: Mapping[str, Any]) -> bool:
    """Tell whether a row has ``input_ids``, or ``prompt`` and ``completion``, or ``text`` without ``question``."""
    return "input_ids" in row or ("prompt" in row and "completion" in row) or ("text" in row and "question" not in row)


def parse(row: Mapping[str, Any], where: Where, needs_documents: bool) -> dict[str, Any]:
    """Return the row with TRL's columns only."""
    fields = Fields(row, where)
    kept = {key: fields.check_json(key) for key in KEYS if fields.get(key) is not None}
    if "input_ids" in kept:
        _check_tokens(fields)
    elif "completion" in kept or "prompt" in kept:
        _check_pair(fields)
    else:
        fields.text("text")
    return kept


def _check_tokens(fields: Fields) -> None:
    ids = fields.items("input_ids", "token ids") or []
    if not ids or not all(_is_int(i) and i >= 0 for i in ids):
        raise fields.error("input_ids", "a non-empty list of token ids (integers from 0)")
    for key in _PER_TOKEN:
        values = fields.items(key, "integers")
        if values is None:
            continue
        if len(values) != len(ids) or not all(_is_int(v) for v in values):
            raise fields.error(key, f"as many integers as input_ids has ({len(ids)})")
        low = -100 if key == "labels" else 0
        if not all(v >= 0 or v == low for v in values) or (low == 0 and not all(v in (0, 1) for v in values)):
            raise fields.error(key, "token ids or -100" if key == "labels" else "zeros and ones")


def _check_pair(fields: Fields) -> None:
    prompt, completion = fields.get("prompt"), fields.get("completion")
    if isinstance(prompt, list) or isinstance(completion, list):
        for key in ("prompt", "completion"):
            messages = fields.objects(key, "messages (as its partner is)")
            if not messages:
                raise fields.error(key, "a non-empty list of messages (as its partner is)")
            for message in messages:
                message.text("role")
                if not isinstance(message.get("content"), str | list) and not message.get("tool_calls"):
                    raise message.error("content", "text or a list of parts")
    else:
        if not isinstance(fields.optional_text("prompt", blank=True), str):
            raise fields.error("prompt", "text or a list of messages")
        if not fields.text("completion"):
            raise RowError(fields.where, "completion", "non-empty text", shown(completion))


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
