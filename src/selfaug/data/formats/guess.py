"""Guesses which columns of unknown rows are the question, the documents and the answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["by_name", "suggested"]

Row = Mapping[str, Any]

# Usual names of the fields, in the order of preference: a reference answer is preferred to the answer of a system.
NAMES: dict[str, tuple[str, ...]] = {
    "question": (
        *("question", "query", "userinput", "userquestion", "userquery", "input", "instruction", "prompt", "q"),
    ),
    "documents": (
        *("documents", "docs", "contexts", "context", "retrievedcontexts", "retrieveddocuments", "retrieveddocs"),
        *("retrievedpassages", "passages", "passage", "ctxs", "chunks", "retrievedchunks", "sourcedocuments"),
        *("sourcenodes", "referencecontexts", "paragraphs", "paragraph", "evidences", "evidence", "searchresults"),
        *("document", "sources", "article", "knowledge"),
    ),
    "answer": (
        *("groundtruth", "groundtruths", "groundtruthanswer", "referenceanswer", "goldanswer", "goldanswers"),
        *("goldenanswer", "goldenanswers", "goldresponse", "expectedanswer", "correctanswer", "idealanswer"),
        *("answer", "answers", "response", "output", "result", "completion", "reference", "target"),
    ),
    "id": ("id", "questionid", "queryid", "qid", "uid"),
    "answerable": ("answerable", "isanswerable", "!isimpossible", "!unanswerable", "!isunanswerable"),
    "system": ("system", "systemprompt"),
    "history": ("history", "chathistory"),
}
_NEEDED = ("question", "documents", "answer")


def by_name(rows: Sequence[Row]) -> dict[str, str]:
    """Return the columns with a usual name of a field, by field; case and signs between words do not count."""
    columns: dict[str, str] = {}
    filled = set()
    for row in rows:
        for key, value in row.items():
            columns.setdefault(_plain(str(key)), str(key))
            if value is not None:
                filled.add(_plain(str(key)))
    found = {}
    for field, names in NAMES.items():
        there = [name for name in names if name.removeprefix("!") in columns]
        name = next((name for name in there if name.removeprefix("!") in filled), there[0] if there else None)
        if name is not None:
            found[field] = "!" * name.startswith("!") + columns[name.removeprefix("!")]
    return found


def suggested(rows: Sequence[Row]) -> str:
    """Return a ``--map`` that probably fits rows of unknown shape; empty for none."""
    places = _places(rows)
    taken: dict[str, str] = {}
    for field in _NEEDED:
        parts = [name for name in NAMES[field] if len(name) > 3]
        named = [p for p in places if any(part in _plain(p) or _plain(p).rstrip("s") in part for part in parts)]
        named = [p for p in named if p not in taken.values() and len(_plain(p)) > 2]
        named = [p for p in named if any(value is not None for value in places[p])]
        if named:
            taken[field] = named[0]
    left = [place for place in places if place not in taken.values()]
    sizes = {place: _size(values) for place, values in places.items()}
    texts = [place for place in left if sizes[place]]
    if "question" not in taken:
        questions = [
            p for p in texts if any(isinstance(v, str) and v.rstrip().endswith(("?", "？", "؟")) for v in places[p])
        ]
        if questions:
            taken["question"] = questions[0]
            texts.remove(questions[0])
    if "documents" not in taken and texts:
        lists = [place for place in texts if any(isinstance(value, list) for value in places[place])]
        longest = max(lists or texts, key=lambda place: sizes[place])
        if lists or "answer" in taken or len(texts) > 1:
            taken["documents"] = longest
            texts.remove(longest)
    if "answer" not in taken and texts:
        taken["answer"] = texts[0]
    if len(taken) < 2:
        return ""
    words = (f"{field}={taken.get(field, '...')}" for field in _NEEDED)
    quoted = " ".join(f"'{word}'" if re.search(r"[\s!\[\]()&;'\"$]", word) else word for word in words)
    return f"--map {quoted}".encode("utf-8", "backslashreplace").decode()


def _places(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Return the values of columns, and of fields of columns of objects, by path; names that look like ids are last."""
    values: dict[str, list[Any]] = {}
    for row in rows:
        for key, value in row.items():
            inner = value.items() if isinstance(value, Mapping) else ()
            for place, entry in [(f"{key}.{name}", entry) for name, entry in inner] or [(str(key), value)]:
                values.setdefault(place, []).append(entry)
    return dict(sorted(values.items(), key=lambda item: _plain(item[0]).endswith("id")))


def _size(values: Sequence[Any]) -> int:
    return max((len(value) if isinstance(value, str) else sum(len(str(v)) for v in value)
                for value in values if isinstance(value, str | list)), default=0)  # fmt: skip


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()
