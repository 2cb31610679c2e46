"""One training whose base writes first, as a process of its own: to its end, or killed by itself while it writes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from tqdm import tqdm

from selfaug.training.config import SelfAugConfig
from selfaug.training.trainer import SelfAugTrainer
from tests.chatting import chat_model, chat_tokenizer
from tests.integration import small

__all__ = ["make_trainer", "records", "start"]


def records(count: int = 18) -> list[dict[str, Any]]:
    """Records whose answers the random model rewrites into something else; some hold an answer that any text has."""
    return [
        {
            "question": f"What did Lily find on day {number}?",
            "documents": [{"title": "Lily", "text": f"On day {number} Lily found the dog in the park."}],
            "answer": "the dog",
        }
        for number in range(count)
    ]


def make_trainer(
    folder: Path, *, moved: float = 0.0, dtype: torch.dtype = torch.float64, rows: Any = None, **changes: Any
) -> SelfAugTrainer:
    """Of two steps by default; ``moved`` changes a weight of the base."""
    model = chat_model(dtype=dtype)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.add_(moved)
    settings: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": 2, "learning_rate": 1e-2, "report_to": "none", "bf16": False,
        "use_cpu": True, "gradient_checkpointing": False, "disable_tqdm": True, "save_strategy": "no",
        "max_length": 256, "generation_length": 24, "generation_batch_size": 2, "method": "magpie",
        "per_device_train_batch_size": 4, "logging_steps": 1,
    }  # fmt: skip
    return SelfAugTrainer(
        model,
        SelfAugConfig(**{**settings, **changes}),
        train_dataset=Dataset.from_list(records()) if rows is None else rows,
        processing_class=chat_tokenizer(),
        peft_config=small.lora(),
    )


class _Killer:
    """Kills its process when a file of samples is opened for writing the n-th time, before anything is written."""

    def __init__(self, at: int) -> None:
        self.at, self.seen = at, 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and "samples-" in str(arguments[0]) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            self.seen += 1
            if self.seen == self.at:
                os.kill(os.getpid(), signal.SIGKILL)


def _child(folder: str, kill_at: int | None, changes: dict[str, Any]) -> None:
    with (Path(folder) / "talk.txt").open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    disable_progress_bars()
    tqdm.set_lock(threading.RLock())  # by default a semaphore of the system, which a killed process leaves behind
    try:
        if kill_at is not None:
            sys.addaudithook(_Killer(kill_at))
        trainer = make_trainer(Path(folder), **changes)
        trainer.train()
        trainer.save_model(str(Path(folder) / "adapter"))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)


def start(folder: Path, kill_at: int | None = None, **changes: Any) -> BaseProcess:
    """A child process, forked from a server that has imported everything and computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    folder.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=_child, args=(str(folder), kill_at, changes))
    process.start()
    return process
