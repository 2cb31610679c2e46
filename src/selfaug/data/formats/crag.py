r"""CRAG (Comprehensive RAG benchmark), tasks 1 to 3: web pages as retrieved, in HTML.

    {"interaction_id": "...", "query": "...", "answer": "...", "alternative_answers": "[\"...\"]" or [...],
     "search_results": [{"page_name": "...", "page_url": "...", "page_snippet": "...", "page_result": "<html>",
                         "page_last_modified": "..."}], "query_time": "...", "domain": "...", "split": 0, ...}

A document is a page's text (its snippet where the page is empty), titled by its name and named by its address; pages
that are empty or repeat one already there are left out (the release holds both). Alternative answers are a list, or the
JSON text of one, also under the older name ``alt_ans``. The answer "i don't know" makes a record that is not answerable
and trains the configured abstention text; "invalid question" is not answerable either, but is what the benchmark wants
to read, so it stays as the answer. In the benchmark's files ``split`` 0 is validation and 1 the public test;
both are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from selfaug.data.fields import Fields, Where
from selfaug.data.formats.html import html_text
from selfaug.data.record import Document, Record, require_documents

COLUMNS = frozenset(("interaction_id", "query", "answer", "alternative_answers", "alt_ans", "search_results"))
_UNKNOWN = "i don't know"
_INVALID = "invalid question"


def matches(row: Mapping[str, Any]) -> bool:
    """Tell whether a row has a ``query`` and ``search_results``."""
    return "query" in row and "search_results" in row


def parse(row: Mapping[str, Any], where: Where, needs_documents: bool) -> Record:
    """Return the record of one query."""
    fields = Fields(row, where)
    answer = fields.text("answer")
    plain = answer.strip().rstrip(".").replace("’", "'").casefold()
    answers = () if plain == _UNKNOWN else tuple(dict.fromkeys((answer, *_alternatives(fields))))
    documents: dict[tuple[str | None, str], Document] = {}
    for page in fields.objects("search_results", "pages") or []:
        text = html_text(page.optional_text("page_result", blank=True) or "")
        text = text or html_text(page.optional_text("page_snippet", blank=True) or "")
        if text:
            title = html_text(page.optional_text("page_name", blank=True) or "") or None
            url = page.optional_text("page_url", blank=True) or None
            documents.setdefault((title, text), Document(text, title, url))
    return Record(
        question=fields.text("query"),
        documents=require_documents(fields, tuple(documents.values()), "search_results", needs_documents),
        answers=answers,
        id=fields.identifier("interaction_id"),
        answerable=plain not in (_UNKNOWN, _INVALID),
    )


def _alternatives(fields: Fields) -> tuple[str, ...]:
    for key in ("alternative_answers", "alt_ans"):
        value = fields.get(key)
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                return Fields({key: json.loads(value)}, fields.where).texts(key) or ()
            except (json.JSONDecodeError, RecursionError):
                raise fields.error(key, "a list of texts, or the JSON text of one") from None
        if value is not None:
            return fields.texts(key) or () if value != "" else ()
    return ()
