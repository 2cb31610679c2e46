"""The rows, prompts and texts of the study on a real instruct model: what is trained on, asked, and to be kept.

SQuAD's articles are split, so that training, validation and test rows share none. A row has its gold paragraph, alone
or among BM25 distractors; in one row of five the gold paragraph is taken away, and the answer is that it is not known.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfaug.data.corpus import Corpus
from selfaug.data.prompts import Renderer
from selfaug.data.read import read_rows
from selfaug.data.record import Document, Record
from selfaug.data.retrieve import retrieve
from selfaug.data.tokens import record_tokens

__all__ = [
    "DIGESTS",
    "LONGEST_ANSWER",
    "PROMPTS",
    "digest",
    "general_prompts",
    "replay_rows",
    "task_rows",
    "texts",
    "write",
]

SEED = 0
PARTS = {"train": 240, "validation": 60, "test": 120}
"""Rows of each part."""
ARTICLES = {"test": 2, "validation": 4}
"""Which of each six articles, in the file's order, belong to a part; the others are trained on."""
LONGEST = 184
"""Tokens of a row with one document; each further document may add as many as a document of the first has."""
UNANSWERABLE = 5
"""One row of so many has its gold paragraph taken away."""
IFEVAL, SCIENCE, MATHS = 100, 25, 25
"""Prompts of each group whose answers by the base are to be kept."""
LONGEST_ANSWER = 64
"""Tokens of such an answer."""
WIKITEXT, WIKITEXT_TOKENS = 40, 128
PROMPTS = 20
"""Prompts of test rows on which the shift is measured."""
REPLAY = 400
DIGESTS = {1: "95bdb5e406fc", 4: "5e6c5bb9dedb"}
"""Of the rows by number of documents: what a key stands for."""


def task_rows(shared: Path, tokenizer: Any, documents: int) -> dict[str, list[Record]]:
    """The records of each part with so many documents: the same questions whatever the number."""
    read = read_rows(shared / "data" / "squad" / "dev-v1.1.json").items
    records = [record for record in read if isinstance(record, Record)]
    titles = list(dict.fromkeys(record.documents[0].title for record in records))
    found = {}
    for part, count in PARTS.items():
        own = [r for r in records if _part(titles.index(r.documents[0].title)) == part]
        found[part] = _rows(own, Renderer.for_tokenizer(tokenizer), tokenizer, count, documents)
    return found


def _part(article: int) -> str:
    return next((part for part, place in ARTICLES.items() if article % 6 == place), "train")


def _rows(own: list[Record], renderer: Renderer, tokenizer: Any, count: int, documents: int) -> list[Record]:
    """Questions whose row with one document is short, drawn by the seed; distractors come from the part's articles."""
    passages = {record.documents[0].text: record.documents[0] for record in own}
    short = [p for p in passages.values() if len(tokenizer(p.text)["input_ids"]) <= LONGEST - 60]
    corpus = Corpus(tuple(Document(p.text, p.title) for p in short))
    order = sorted(own, key=lambda record: hashlib.sha256(f"{SEED} {record.id}".encode()).hexdigest())
    chosen: list[Record] = []
    for record in order:
        record = replace(record, answers=tuple(dict.fromkeys(record.answers)))
        gold = tuple(Document(d.text, d.title) for d in record.documents)
        if len(chosen) % UNANSWERABLE == UNANSWERABLE - 1:
            # No distractor holds an accepted answer, so none is the gold paragraph.
            bare = replace(record, documents=())
            one, row = (retrieve([bare], corpus, 0, distractors=n, seed=SEED)[0] for n in (1, documents))
            one, row = (replace(each, answers=(), answerable=False) for each in (one, row))
        else:
            one = row = replace(record, documents=gold)
            if documents > 1:
                (row,) = retrieve([row], corpus, 0, distractors=documents - 1, seed=SEED)
        if one.documents and sum(map(len, record_tokens(renderer, tokenizer, one, one.documents))) <= LONGEST:
            chosen.append(row)
        if len(chosen) == count:
            return chosen
    raise ValueError(f"{len(chosen)} rows are short enough, and {count} are needed")


def general_prompts(shared: Path) -> list[dict[str, str]]:
    """The prompts whose answers by the base are to be kept: instructions (IFEval), and questions of two kinds."""
    ifeval = [
        {"group": "ifeval", "id": str(row["key"]), "prompt": row["prompt"]}
        for row in _lines(shared / "data" / "ifeval" / "input_data.jsonl")
    ]
    science = [{"group": "science", "id": row["id"], "prompt": row["question"]} for row in _science(shared)]
    maths = [{"group": "maths", "id": row["id"], "prompt": row["question"]} for row in _maths(shared)]
    return [*_drawn(ifeval)[:IFEVAL], *_drawn(science)[:SCIENCE], *_drawn(maths)[:MATHS]]


def replay_rows(shared: Path) -> list[dict[str, Any]]:
    """General data for methods that may see some: other questions of the same two kinds, with their right answers."""
    science = [(row["question"], row["answer"]) for row in _drawn(_science(shared))[SCIENCE:]]
    maths = [(row["question"], row["answer"]) for row in _drawn(_maths(shared))[MATHS:]]
    pairs = [*science[: REPLAY // 2], *maths[: REPLAY // 2]]
    return [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in pairs
    ]


def _science(shared: Path) -> list[dict[str, str]]:
    rows = _lines(shared / "data" / "arc-challenge" / "arc_challenge_test.jsonl")
    right = ({option["label"]: option["text"] for option in row["options"]}[row["answer"]] for row in rows)
    found = [{"id": r["id"], "question": r["question"], "answer": a} for r, a in zip(rows, right, strict=True)]
    return [row for row in found if row["question"].endswith("?") and "of these" not in row["question"]]


def _maths(shared: Path) -> list[dict[str, str]]:
    rows = _lines(shared / "data" / "gsm8k" / "test.jsonl")
    return [
        # The calculator's marks and the line for scripts are no part of an answer to a person.
        {
            "id": f"gsm8k-{n}",
            "question": r["question"],
            "answer": re.sub(r"<<.*?>>", "", r["answer"]).split("####")[0].strip(),
        }
        for n, r in enumerate(rows)
    ]


def _drawn(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    return random.Random(SEED).sample(list(rows), len(rows))


def texts(shared: Path, tokenizer: Any) -> list[list[int]]:
    """Token ids of the WikiText passages that are measured on."""
    return [tokenizer(text)["input_ids"][:WIKITEXT_TOKENS] for text in _wikitext(shared)[:WIKITEXT]]


def _wikitext(shared: Path) -> list[str]:
    return list(json.loads((shared / "data" / "tinystories" / "wikitext_1000.json").read_text("utf-8")))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def digest(value: Any) -> str:
    """The first 12 digits of the SHA-256 of a value, as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
