"""`selfaug lab`: make the lab's model from nothing, or write rows of its RAG task.

`lab make` trains the model and prints the hash of its weights; killed, it goes on from its last checkpoint. `lab task`
writes canonical rows that `selfaug train` and `selfaug prepare` read. Data on stdout, talk on stderr.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from selfaug.cli.outputs import check_writable
from selfaug.common.errors import ConfigError
from selfaug.common.progress import counting
from selfaug.common.terminal import emit, say

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """The flags of the verb's two parts."""
    parser = subparsers.add_parser("lab", help="make the lab's model, or rows of its RAG task", description=__doc__)
    parts = parser.add_subparsers(title="parts", dest="part", metavar="PART", required=True)
    making = parts.add_parser("make", help="train the lab's model from nothing")
    making.add_argument("--output_dir", "--output-dir", required=True, metavar="FOLDER", help="of the model")
    making.add_argument("--size", default="base", help="small, base or large")
    making.add_argument("--steps", type=int, help="optimiser steps")
    making.add_argument("--learning_rate", "--learning-rate", type=float, help="highest learning rate")
    making.add_argument("--seed", type=int, help="of weights, order and mixture")
    making.add_argument("--threads", type=int, help="of the products; their number decides the last bits")
    making.add_argument("--tokens", type=int, help="of a step, about")
    making.add_argument("--precision", help="float32, or bfloat16 for a GPU")
    making.add_argument("--workers", type=int, default=0, help="processes that make batches; they change nothing")
    making.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    making.add_argument("--checkpoint_every", "--checkpoint-every", type=int, default=200, metavar="STEPS")
    making.add_argument("--probe_every", "--probe-every", type=int, default=0, metavar="STEPS", help="test all skills")
    task = parts.add_parser("task", help="write rows of the RAG task to stdout or a file")
    task.add_argument("--part_of", "--part-of", choices=("train", "test"), default="train", dest="rows_part")
    task.add_argument("--count", type=int, default=1000, help="rows")
    task.add_argument("--seed", type=int, default=0, help="of the rows")
    task.add_argument("--output", metavar="FILE", help="a JSONL file; stdout without it")
    for name, default in (("documents", 4), ("sentences", 1), ("told", 3)):
        task.add_argument(f"--{name}", type=int, default=default, help=_HELP[name])
    for name, share in (("known", 0.25), ("unanswerable", 0.15), ("outdated", 0.1)):
        task.add_argument(f"--{name}", type=float, default=share, help=_HELP[name])
    task.add_argument("--sentence_answers", "--sentence-answers", action="store_true", help="answer in sentences")


_HELP = {
    "documents": "documents of a question, 1 to 20",
    "sentences": "sentences of filling in each document",
    "told": "facts that a document tells, 1 to 5",
    "known": "share of distracting documents about lands that the base knows",
    "unanswerable": "share of questions that no document answers",
    "outdated": "share of questions with an old document that contradicts the new one",
}


def run(args: argparse.Namespace) -> int:
    """Make a model or rows; the exit code."""
    return _make(args) if args.part == "make" else _task(args)


def _make(args: argparse.Namespace) -> int:
    from selfaug.lab.model import Making, is_finished, make

    for name in ("steps", "threads", "tokens", "checkpoint_every"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ConfigError(f"{name}={getattr(args, name)} is no number of {name}.", "give 1 or more.")
    chosen = {field.name: getattr(args, field.name, None) for field in dataclasses.fields(Making)}
    making = Making(**{name: value for name, value in chosen.items() if value is not None})
    folder = Path(args.output_dir).expanduser()
    if is_finished(folder):
        raise ConfigError(f"output_dir {str(folder)!r} holds a finished model.", "name another folder.")
    check_writable(folder)
    say(f"making {making.size}: {making.steps} steps of about {making.tokens} tokens")
    with counting("training", making.steps) as progress:

        def step(done: int) -> None:
            if not progress.estimate.done:
                progress.estimate.begin(done - 1)  # a making that was stopped goes on from its checkpoint
            progress(done)

        found = make(
            folder,
            making,
            device=args.device,
            workers=args.workers,
            probe_every=args.probe_every,
            checkpoint_every=args.checkpoint_every,
            log=lambda entry: say("  ".join(f"{name} {value}" for name, value in entry.items())),
            progress=step,
        )
    say(f"written: {folder}")
    emit(found)
    return 0


def _task(args: argparse.Namespace) -> int:
    from selfaug.common.store import write_whole
    from selfaug.lab.task import Distance, rows
    from selfaug.lab.world import World

    if args.count < 1:
        raise ConfigError(f"count={args.count} asks for no row.", "give 1 or more.")
    names = ("documents", "sentences", "told", "known", "unanswerable", "outdated")
    distance = Distance(**{name: getattr(args, name) for name in names}, terse=not args.sentence_answers)
    made = rows(args.rows_part, args.count, World.make(), distance, args.seed)
    lines = [json.dumps(row, ensure_ascii=False) for row in made]
    if args.output is None:
        for line in lines:
            emit(line)
        return 0
    path = Path(args.output).expanduser()
    if not path.parent.is_dir():
        raise ConfigError(f"output {args.output!r} lies in a folder that does not exist.", "make the folder first.")
    write_whole(path, "\n".join(lines) + "\n")
    say(f"written: {len(lines)} rows in {path}")
    return 0
