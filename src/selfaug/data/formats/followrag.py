"""FollowRAG: questions of four data sets with retrieved passages, and instructions about the answer's form.

    {"key": 0, "type": "ifnq", "question": "...", "answer_gold": "one/another", "question_with_instrs": "...",
     "prompt": "...", "instruction_id_list": [...], "kwargs": [...], "passages": [{"title": "...", "content": "..."}]}

``answer_gold`` joins the accepted answers with slashes; the whole text is accepted too, since an answer may hold a
slash of its own. The gold answers do not follow the added instructions, so the record asks the plain ``question``:
training a bare answer under instructions about its form would teach to ignore them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfaug.data.fields import Fields, Where
from selfaug.data.formats.ctxs import passage
from selfaug.data.record import Record, require_documents


def matches(row: Mapping[str, Any]) -> bool:
    """``passages`` with ``answer_gold``, or a ``question_with_instrs``."""
    return ("passages" in row and "answer_gold" in row) or "question_with_instrs" in row


def parse(row: Mapping[str, Any], where: Where, needs_documents: bool) -> Record:
    """The record of one question."""
    fields = Fields(row, where)
    gold = fields.text("answer_gold")
    parts = [part.strip() for part in gold.split("/")]
    documents = tuple(passage(p) for p in fields.objects("passages", "passages") or [])
    return Record(
        question=fields.text("question"),
        documents=require_documents(fields, documents, "passages", needs_documents),
        answers=tuple(dict.fromkeys(part for part in (*parts, gold.strip()) if part)),
        id=fields.identifier("key"),
    )
