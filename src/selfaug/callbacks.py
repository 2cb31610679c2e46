"""What does a running training show, what does it log, and how does it stop when it is told to?

These take the place of transformers' own printing callbacks, which write to stdout.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from selfaug.checkpoint import write_durably
from selfaug.terminal import say

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

__all__ = ["JsonLog", "ProgressOnStderr", "StopOnSignal", "install", "kept_entries"]

# What fits a line; `log.jsonl` has all of it.
_SHOWN = (
    *("loss", "nll", "alignment", "learning_rate", "grad_norm", "tokens_per_second"),
    *("eval_loss", "eval_nll", "eval_alignment", "eval_mean_token_accuracy", "train_runtime"),
)


def install(trainer: Trainer, log: Path) -> StopOnSignal:
    """Replace transformers' printing callbacks of a trainer by ours, and return the one that knows of signals.

    Args:
        trainer: Any ``transformers`` trainer.
        log: The file that gets one JSON object a log event.
    """
    for printing in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(printing)
    stop = StopOnSignal()
    for callback in (ProgressOnStderr(), JsonLog(log), stop):
        trainer.add_callback(callback)
    return stop


class StopOnSignal(TrainerCallback):
    """SIGINT and SIGTERM let the step finish, save a checkpoint, and end the training; a second one ends it at once.

    Every rank asks every other after each step, so all stop after the same one whichever was told to.

    Attributes:
        signal: The number of the signal that ended the training, 0 where none did.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._received = 0
        self._previous: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """128 and the signal's number (130 for SIGINT, 143 for SIGTERM), or 0."""
        return 128 + self.signal if self.signal else 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take over the two signals; outside the main thread Python does not allow it, and they stay as they are."""
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        except ValueError:
            self._previous.clear()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Give the signals back."""
        self.release()

    def release(self) -> None:
        """Give the signals back, also after a training that failed."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """End the training here if any rank was told to."""
        self.signal = _largest_of_all_ranks(self._received, args)
        if self.signal:
            control.should_save = True
            control.should_training_stop = True
            # The evaluation would come before the save, and whoever sent the signal may not wait for it.
            control.should_evaluate = False
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """After the save of the step nothing more is due, whatever the strategies say about ends of epochs."""
        if self.signal:
            control.should_save = control.should_evaluate = False
        return control

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self._received:
            os._exit(128 + number)
        self._received = number
        # Not through Python's buffered stderr: the signal may have interrupted a write to it.
        name = signal.Signals(number).name
        os.write(2, f"\n{name}: stopping after this step, with a checkpoint. Once more stops at once.\n".encode())


def _largest_of_all_ranks(value: int, args: TrainingArguments) -> int:
    if args.world_size == 1:
        return value
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        return value
    shared = torch.tensor(value, device=args.device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return int(shared.item())


class JsonLog(TrainerCallback):
    """One JSON object a log event: ``step``, ``epoch``, ``time`` (seconds since 1970) and the numbers logged.

    On resume, entries after the resumed step are dropped: they belong to steps that are taken anew. A number that is
    not finite is written as ``null``, which is all that JSON has.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep what earlier parts of this run logged."""
        if state.is_world_process_zero:
            text = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
            write_durably(self.path, "".join(f"{line}\n" for line in kept_entries(text, state.global_step)))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Append the event."""
        if not state.is_world_process_zero or not logs:
            return
        entry = {"step": state.global_step, "epoch": state.epoch, "time": round(time.time(), 3), **logs}
        plain = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in entry.items()
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain, default=float) + "\n")


def kept_entries(text: str, step: int) -> list[str]:
    """Lines of a log whose step is at most ``step``; with ``step`` 0 none, for then the run starts anew.

    A line that is no JSON was cut by a kill, and is dropped.
    """
    kept = []
    for line in text.splitlines() if step else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("step", 0) <= step:
            kept.append(line)
    return kept


class ProgressOnStderr(TrainerCallback):
    """A progress bar where stderr is a terminal (unless ``disable_tqdm``), and one line a log event everywhere."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Show the bar."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        if state.is_world_process_zero and console.is_terminal and not args.disable_tqdm:
            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            )  # fmt: skip
            self._progress = Progress(*columns, console=console)
            self._tasks["train"] = self._progress.add_task("steps", total=state.max_steps, completed=state.global_step)
            self._progress.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar."""
        if self._progress is not None:
            self._progress.update(self._tasks["train"], completed=state.global_step)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """Show how far an evaluation is."""
        if self._progress is None:
            return
        if "evaluate" not in self._tasks:
            total = len(eval_dataloader) if hasattr(eval_dataloader, "__len__") else None
            self._tasks["evaluate"] = self._progress.add_task("evaluation", total=total)
        self._progress.advance(self._tasks["evaluate"])

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take the evaluation's bar away."""
        if self._progress is not None and "evaluate" in self._tasks:
            self._progress.remove_task(self._tasks.pop("evaluate"))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """One line: the losses first, then the other numbers by name."""
        if not state.is_world_process_zero or not logs:
            return
        names = [name for name in _SHOWN if name in logs]
        shown = "  ".join(f"{name} {_number(logs[name])}" for name in names)
        line = f"step {state.global_step}/{state.max_steps}  {shown}"
        if self._progress is not None:
            self._progress.console.print(line, markup=False, highlight=False)
        else:
            say(line)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave the finished bar on the screen."""
        self.close()

    def close(self) -> None:
        """Stop drawing, also after a training that failed."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._tasks.clear()


def _number(value: Any) -> str:
    """A count as it is, anything else with four digits; powers of ten only where a number is small or astronomic."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
