"""The rows and texts of the studies on stories260k (docs/results.md), from the shared data.

    python benchmarks/study_data.py --shared DIR --data mctest --output DIR

Writes `train.jsonl` and `test.jsonl` (canonical rows whose prompt, as `selfaug train` renders it, and answer fit the
model's 512 tokens whole; other stories or articles in each), `stories.jsonl` (what the base can do: texts to be
measured on) and `replay.jsonl` (others of the same kind, for methods that may see them).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from small_runs import CONTEXT, SOURCES, fitting

from selfaug.data.record import Record

BARE = {"system": ""}  # the model knows no instructions; a system text would only take room from its 512 tokens


def row(record: Record) -> dict[str, Any]:
    """A record as a canonical row."""
    documents = [{"title": document.title, "text": document.text} for document in record.documents]
    return {
        "id": record.id,
        "question": record.question,
        **BARE,
        "documents": documents,
        "answer": list(record.answers),
    }


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows), encoding="utf-8")


def main() -> None:
    """Write the four files and say how much is in each."""
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="Folder with models/stories260k and data/.")
    parser.add_argument("--data", choices=list(SOURCES), default="mctest")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--train", type=int, default=393, help="Rows at most.")
    parser.add_argument("--test", type=int, default=120)
    parser.add_argument("--stories", type=int, default=40)
    parser.add_argument("--replay", type=int, default=400)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.shared / "models" / "stories260k")
    args.output.mkdir(parents=True, exist_ok=True)
    train, test = (fitting(args.shared, tokenizer, args.data, part, BARE) for part in ("train", "test"))
    texts = json.loads((args.shared / "data" / "tinystories" / "tinystories_1000.json").read_text())
    texts = [text for text in texts if len(tokenizer(text)["input_ids"]) <= CONTEXT]
    files = {
        "train": [row(record) for record, _ in train[: args.train]],
        "test": [row(record) for record, _ in test[: args.test]],
        "stories": [{"text": text} for text in texts[: args.stories]],
        "replay": [{"text": text} for text in texts[-args.replay :]],
    }
    for name, rows in files.items():
        write(args.output / f"{name}.jsonl", rows)
    print({name: len(rows) for name, rows in files.items()})


if __name__ == "__main__":
    main()
