"""One training as a process of its own, to be killed and resumed: alone, or by itself at a chosen file operation."""

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

from selfaug.run.checkpoint import SEAL, last_whole
from selfaug.training.config import SelfAugConfig
from selfaug.training.trainer import SelfAugTrainer
from tests.integration import small

__all__ = ["Killer", "config", "make_trainer", "start"]

# What the issue asks for: an eighth of the sequences aligned, dropout, packing, a frozen copy of the first adapter.
SETTINGS: dict[str, Any] = {
    "max_steps": 40,
    "save_steps": 2,
    "save_total_limit": 2,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "packing": True,
    "max_length": 64,
    "alpha": 2.0,
    "align_fraction": 0.125,
    "reference": "initial",
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "report_to": "none",
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}


def config(output_dir: Path, **changes: Any) -> SelfAugConfig:
    return SelfAugConfig(**{**SETTINGS, "output_dir": str(output_dir), **changes})


def make_trainer(output_dir: Path, *, seed_of_rows: int = 0, model: Any = None, **changes: Any) -> SelfAugTrainer:
    return SelfAugTrainer(
        small.model() if model is None else model,
        config(output_dir, **changes),
        train_dataset=Dataset.from_list(small.rows(60, seed=seed_of_rows)),
        processing_class=small.tokenizer(),
        peft_config=small.lora(lora_dropout=0.1),
    )


class Killer:
    """Kills its process at the n-th operation that changes a name or opens a file for writing below a folder.

    Args:
        folder: What to watch.
        at: Number of the operation, from 1; ``None`` to count only.
        armed_by: File that must exist before operations count.
    """

    _CHANGES = frozenset({"os.rename", "os.remove", "os.rmdir", "os.mkdir"})

    def __init__(self, folder: Path, at: int | None, armed_by: Path) -> None:
        self.folder, self.at, self.armed_by, self.armed, self.seen = str(folder), at, armed_by, False, 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            counts = isinstance(path, str) and path.startswith(self.folder) and bool(flags & (os.O_WRONLY | os.O_RDWR))
        elif event in self._CHANGES:
            path, folder = os.fspath(arguments[0]), arguments[-1]
            # `rmtree` names files relative to an open folder: below a temporary folder of the test it can only be ours.
            counts = path.startswith(self.folder) or (event in ("os.remove", "os.rmdir") and folder != -1)
        else:
            return
        self.armed = self.armed or self.armed_by.exists()
        if not counts or not self.armed:
            return
        self.seen += 1
        if self.seen == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def _child(output_dir: str, log: str, changes: dict[str, Any], kill_at: int | None) -> None:
    # Library talk goes to a file, at the level of descriptors: compiled code writes there too.
    with Path(log).open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    disable_progress_bars()
    tqdm.set_lock(threading.RLock())  # by default a semaphore of the system, which a killed process leaves behind
    try:
        folder = Path(output_dir)
        checkpoints = folder / "checkpoints"
        trainer = make_trainer(checkpoints, **changes)
        resume = last_whole(checkpoints) is not None
        killer = Killer(checkpoints, kill_at, checkpoints / f"checkpoint-{changes.get('save_steps', 2)}" / SEAL)
        if not resume:
            sys.addaudithook(killer)
        trainer.train(resume_from_checkpoint="true" if resume else None)
        trainer.save_model(str(folder / "adapter"))
        (folder / "operations").write_text(str(killer.seen))
        (folder / "steps").write_text(str(trainer.state.global_step))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)


def start(output_dir: Path, *, kill_at: int | None = None, **changes: Any) -> BaseProcess:
    """A child process that trains to the end, from the last whole checkpoint where there is one.

    Children are forked from a server that has imported everything and computed nothing: each starts in milliseconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    output_dir.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=_child, args=(str(output_dir), str(output_dir / "talk.txt"), changes, kill_at))
    process.start()
    return process
