"""Callbacks of training: its display, its log, and a clean stop on signals.

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

from selfaug.common.files import write_durably
from selfaug.common.progress import Screen, Work
from selfaug.common.terminal import say

if TYPE_CHECKING:
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
    """Bars where stderr is a terminal (unless ``disable_tqdm``), else lines; and one line a log event everywhere."""

    def __init__(self) -> None:
        self._screen: Screen | None = None
        self._steps: Work | None = None
        self._evaluation: Work | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Show how many steps there are, and start the clock."""
        if state.is_world_process_zero:
            self._screen = Screen(wants_bars=not args.disable_tqdm, transient=False)
            self._screen.start()
            self._steps = self._screen.add("steps", state.max_steps, state.global_step, always=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Show how far the training is."""
        if self._steps is not None:
            self._steps.update(state.global_step, line=not control.should_log)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """Show how far an evaluation is."""
        if self._screen is None:
            return
        if self._evaluation is None:
            total = len(eval_dataloader) if hasattr(eval_dataloader, "__len__") else None
            self._evaluation = self._screen.add("evaluation", total)
        self._evaluation.update(self._evaluation.estimate.done + 1)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take the evaluation off the screen."""
        if self._evaluation is not None:
            self._evaluation.remove()
            self._evaluation = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """One line: the losses first, then the other numbers by name, and where no bar says it the time left."""
        if not state.is_world_process_zero or not logs:
            return
        names = [name for name in _SHOWN if name in logs]
        shown = "  ".join(f"{name} {_number(logs[name])}" for name in names)
        line = f"step {state.global_step}/{state.max_steps}  {shown}"
        if self._screen is None:
            say(line)
            return
        if self._screen.bars is None and self._steps is not None and state.global_step < state.max_steps:
            line += f"  {self._steps.left()}"
        self._screen.line(line.rstrip())

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave the finished bar on the screen."""
        self.close()

    def close(self) -> None:
        """Stop drawing, also after a training that failed."""
        if self._screen is not None:
            self._screen.stop()
            self._screen = self._steps = self._evaluation = None


def _number(value: Any) -> str:
    """A count as it is, anything else with four digits; powers of ten only where a number is small or astronomic."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
