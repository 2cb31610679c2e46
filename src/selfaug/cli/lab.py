"""`selfaug lab`: trains the lab's model from scratch, or writes rows of its RAG task.

`lab make` trains the model and prints the hash of its weights; a killed call can be resumed from its last checkpoint.
`lab task` writes canonical rows that `selfaug train` and `selfaug prepare` read. Data goes to stdout, messages to
stderr.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from selfaug.cli.config import Call, Command
from selfaug.cli.outputs import check_writable
from selfaug.common.errors import ConfigError
from selfaug.common.options import REQUIRED, option
from selfaug.common.progress import counting
from selfaug.common.terminal import emit, say
from selfaug.lab.making import PRECISIONS, SIZES, Making
from selfaug.lab.task import Distance

__all__ = ["COMMAND", "run"]


@dataclass
class MakeSettings:
    """Settings of `selfaug lab make`."""

    output_dir: str = option(REQUIRED, "Folder of the model.", group="Output", metavar="FOLDER")
    size: str = option(
        Making.size, f"Size of the model: {', '.join(SIZES)}.", group="Model and training", metavar="NAME"
    )
    steps: int = option(Making.steps, "Number of optimiser steps.")
    tokens: int = option(Making.tokens, "Approximate number of tokens of a step.")
    learning_rate: float = option(Making.learning_rate, "Highest learning rate.")
    seed: int = option(Making.seed, "Seed of weights, order and mixture.")
    threads: int = option(Making.threads, "Threads of matrix products; their number decides the last bits.")
    precision: str = option(
        Making.precision, f"Number format of matrix products: {' or '.join(PRECISIONS)} (for a GPU).", metavar="NAME"
    )
    workers: int = option(0, "Processes that make batches, without effect on the result.", group="Machine and progress")
    device: str = option("cpu", "Device: cpu, cuda, ...", metavar="NAME")
    checkpoint_every: int = option(200, "Steps between checkpoints.", metavar="STEPS")
    probe_every: int = option(0, "Steps between tests of all skills; 0 for none.", metavar="STEPS")


@dataclass
class TaskSettings:
    """Settings of `selfaug lab task`."""

    part_of: Literal["train", "test"] = option(
        "train", "Part of the task; the two share no land, town, river or person.", group="Rows"
    )
    count: int = option(1000, "Number of rows.")
    seed: int = option(0, "Seed of the rows.")
    documents: int = option(
        Distance.documents,
        "Number of documents of a question, 1 to 20.",
        group="How far the task lies from what the model knows",
    )
    sentences: int = option(Distance.sentences, "Number of filler sentences in each document.")
    told: int = option(Distance.told, "Number of facts in a document, 1 to 5.")
    known: float = option(
        Distance.known, "Share of distracting documents about lands that the base knows.", metavar="SHARE"
    )
    unanswerable: float = option(Distance.unanswerable, "Share of questions that no document answers.", metavar="SHARE")
    outdated: float = option(
        Distance.outdated, "Share of questions with an old document that contradicts the new one.", metavar="SHARE"
    )
    sentence_answers: bool = option(not Distance.terse, "Answer in sentences.")
    output: str | None = option(None, "JSONL file of the rows.", group="Output", metavar="FILE", shown="stdout")


MAKE = Command(
    "lab make",
    MakeSettings,
    "Train the lab's model from nothing, and print the hash of its weights. Killed, it goes on from its last "
    "checkpoint.",
    (
        "selfaug lab make --output_dir lab-model --size base",
        "selfaug lab make --output_dir lab-small --size small --steps 6000 --threads 2",
    ),
)
TASK = Command(
    "lab task",
    TaskSettings,
    "Write canonical rows of the lab's RAG task, which `selfaug train` and `selfaug prepare` read.",
    (
        "selfaug lab task --part_of train --count 1600 --output train.jsonl",
        "selfaug lab task --part_of test --count 200 --documents 8 --output test.jsonl",
    ),
)
COMMAND: Command[Any] = Command(
    "lab",
    (),
    (__doc__ or "").partition("\n\n")[0],
    (MAKE.examples[0], TASK.examples[0]),
    parts=(MAKE, TASK),
)


def run(call: Call[Any]) -> int:
    """Make a model or rows, and return the exit code."""
    return _make(call.settings) if call.command is MAKE else _task(call.settings)


def _make(settings: MakeSettings) -> int:
    from selfaug.lab.model import is_finished, make

    for name in ("steps", "threads", "tokens", "checkpoint_every"):
        if getattr(settings, name) < 1:
            raise ConfigError(f"{name}={getattr(settings, name)} is no number of {name}.", "give 1 or more.")
    own = {one.name for one in dataclasses.fields(Making)} & vars(settings).keys()
    making = Making(**{name: getattr(settings, name) for name in own})
    folder = Path(settings.output_dir).expanduser()
    if is_finished(folder):
        raise ConfigError(f"output_dir {str(folder)!r} holds a finished model.", "name another folder.")
    check_writable(folder)
    say(f"making {making.size}: {making.steps} steps of about {making.tokens} tokens")
    with counting("training", making.steps) as progress:

        def step(done: int) -> None:
            if not progress.estimate.done:
                progress.estimate.begin(done - 1)  # the training resumes from a checkpoint
            progress(done)

        digest = make(
            folder,
            making,
            device=settings.device,
            workers=settings.workers,
            probe_every=settings.probe_every,
            checkpoint_every=settings.checkpoint_every,
            log=lambda entry: say("  ".join(f"{name} {value}" for name, value in entry.items())),
            progress=step,
        )
    say(f"written: {folder}")
    emit(digest)
    return 0


def _task(settings: TaskSettings) -> int:
    from selfaug.common.store import write_whole
    from selfaug.lab.task import rows
    from selfaug.lab.world import World

    if settings.count < 1:
        raise ConfigError(f"count={settings.count} asks for no row.", "give 1 or more.")
    names = ("documents", "sentences", "told", "known", "unanswerable", "outdated")
    distance = Distance(**{name: getattr(settings, name) for name in names}, terse=not settings.sentence_answers)
    made = rows(settings.part_of, settings.count, World.make(), distance, settings.seed)
    lines = [json.dumps(row, ensure_ascii=False) for row in made]
    if settings.output is None:
        for line in lines:
            emit(line)
        return 0
    path = Path(settings.output).expanduser()
    if not path.parent.is_dir():
        raise ConfigError(f"output {settings.output!r} lies in a folder that does not exist.", "make the folder first.")
    write_whole(path, "\n".join(lines) + "\n")
    say(f"written: {len(lines)} rows in {path}")
    return 0
