"""The rows and texts of the studies on stories260k and in the lab (docs/results/).

    python benchmarks/study_data.py --shared DIR --data mctest --output DIR
    python benchmarks/study_data.py --data lab --train 1600 --test 500 --output DIR

Writes `train.jsonl` and `test.jsonl` (canonical rows whose prompt, as `selfaug train` renders it, and answer fit the
model's 512 tokens whole; other stories or articles in each), `stories.jsonl` (what the base can do: texts to be
measured on) and `replay.jsonl` (others of the same kind, for methods that may see them). In the lab the rows are those
of `selfaug lab task`, what the base can do is measured by `--general lab`, and `replay.jsonl` has conversations of the
same skills, from their training part.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from small_runs import CONTEXT, SOURCES, fitting

from selfaug.data.record import Record
from selfaug.lab.skills import SKILLS, items
from selfaug.lab.task import rows
from selfaug.lab.world import World

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


def of_lab(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """The lab's files, as many general conversations of each skill."""
    world = World.make()
    general = [item for skill in SKILLS for item in items(skill, "train", args.replay // len(SKILLS), world)]
    return {
        "train": rows("train", args.train, world),
        "test": rows("test", args.test, world),
        "replay": [{"messages": [*i.messages(), {"role": "assistant", "content": i.answer}]} for i in general],
    }


def of_stories(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """The files for stories260k."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.shared / "models" / "stories260k")
    train, test = (fitting(args.shared, tokenizer, args.data, part, BARE) for part in ("train", "test"))
    texts = json.loads((args.shared / "data" / "tinystories" / "tinystories_1000.json").read_text())
    texts = [text for text in texts if len(tokenizer(text)["input_ids"]) <= CONTEXT]
    return {
        "train": [row(record) for record, _ in train[: args.train]],
        "test": [row(record) for record, _ in test[: args.test]],
        "stories": [{"text": text} for text in texts[: args.stories]],
        "replay": [{"text": text} for text in texts[-args.replay :]],
    }


def main() -> None:
    """Write the files and say how much is in each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, help="Folder with models/stories260k and data/; not for the lab.")
    parser.add_argument("--data", choices=list(SOURCES), default="mctest")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--train", type=int, default=393, help="Rows at most.")
    parser.add_argument("--test", type=int, default=120)
    parser.add_argument("--stories", type=int, default=40)
    parser.add_argument("--replay", type=int, default=400)
    args = parser.parse_args()
    if args.data != "lab" and args.shared is None:
        parser.error("--shared is needed for this data")
    args.output.mkdir(parents=True, exist_ok=True)
    files = of_lab(args) if args.data == "lab" else of_stories(args)
    for name, each in files.items():
        write(args.output / f"{name}.jsonl", each)
    print({name: len(each) for name, each in files.items()})


if __name__ == "__main__":
    main()
