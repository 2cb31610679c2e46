"""Callbacks of training: its display, its log, and a clean stop on signals.

They replace transformers' own printing callbacks, which write to stdout.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from selfaug.common.files import write_durably
from selfaug.common.progress import Screen, Work
from selfaug.common.ranks import begin_reduce
from selfaug.common.terminal import say

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

__all__ = ["JsonLog", "ProgressOnStderr", "RememberTrackers", "StopOnSignal", "install", "kept_entries"]

# Numbers of a log event that fit on a line; `log.jsonl` has all of them.
_DISPLAYED = (
    *("loss", "nll", "alignment", "alpha", "shift", "learning_rate", "grad_norm", "tokens_per_second"),
    *("eval_loss", "eval_nll", "eval_alignment", "eval_mean_token_accuracy", "probe_kl", "train_runtime"),
)


def install(trainer: Trainer, log: Path) -> StopOnSignal:
    """Replace the printing callbacks of a trainer by ours, and return the one that handles signals.

    Args:
        trainer: Any ``transformers`` trainer.
        log: File that gets a JSON object for each log event.
    """
    for printing in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(printing)
    stop = StopOnSignal()
    for callback in (ProgressOnStderr(), JsonLog(log), stop):
        trainer.add_callback(callback)
    return stop


class StopOnSignal(TrainerCallback):
    """Ends the training on SIGINT and SIGTERM after the current step, with a checkpoint; at once on a second signal.

    Ranks exchange received signals after each step, so all stop after the same one.

    Attributes:
        signal: Number of the signal that ended the training; 0 for none.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._received = 0
        self._previous: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number (130 for SIGINT, 143 for SIGTERM), or 0."""
        return 128 + self.signal if self.signal else 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Install the signal handlers; outside the main thread Python does not allow it, and nothing changes."""
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        except ValueError:
            self._previous.clear()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Restore the signal handlers."""
        self.release()

    def release(self) -> None:
        """Restore the signal handlers, also after a training that failed."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """End the training if any rank received a signal."""
        self.signal = self._received
        if args.world_size > 1:
            self.signal = int(begin_reduce(torch.tensor(self._received), "max")())
        if self.signal:
            control.should_save = True
            control.should_training_stop = True
            # An evaluation would come before the save, and the sender of the signal may not wait for it.
            control.should_evaluate = False
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Skip the save and evaluation of an epoch's end after a stop, since the step was already saved."""
        if self.signal:
            control.should_save = control.should_evaluate = False
        return control

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self._received:
            os._exit(128 + number)
        self._received = number
        # Python's buffered stderr cannot be used, since the signal may have interrupted a write to it.
        name = signal.Signals(number).name
        os.write(2, f"\n{name}: stopping after this step, with a checkpoint. Once more stops at once.\n".encode())


class JsonLog(TrainerCallback):
    """Writes a JSON object for each log event: ``step``, ``epoch``, ``time`` (seconds since 1970), logged numbers.

    On resume, entries after the resumed step are dropped, since their steps are taken again. Numbers that are not
    finite are written as ``null``, since JSON has none.

    Args:
        path: File of the log.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep the entries of earlier parts of this run."""
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
        """Append an entry."""
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
    """Return the lines of a log up to a step; none for step 0, where the run begins.

    A line that is not JSON was cut when the process was killed, and is dropped.
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


class RememberTrackers(TrainerCallback):
    """Calls a function on the first process once the trackers of the training are open; it must come after them.

    Args:
        remember: Function to call.
    """

    def __init__(self, remember: Callable[[], None]) -> None:
        self._remember = remember

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Call the function."""
        if state.is_world_process_zero:
            self._remember()


class ProgressOnStderr(TrainerCallback):
    """Shows progress on stderr: bars on a terminal (unless ``disable_tqdm``) or lines, and a line per log event."""

    def __init__(self) -> None:
        self._screen: Screen | None = None
        self._steps: Work | None = None
        self._evaluation: Work | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Show the number of steps, and start the estimate of the remaining time."""
        if state.is_world_process_zero:
            self._screen = Screen(wants_bars=not args.disable_tqdm, transient=False)
            self._screen.start()
            self._steps = self._screen.add("steps", state.max_steps, state.global_step, always=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Show the progress of the training."""
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
        """Show the progress of an evaluation."""
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
        """Show the main numbers of a log event on a line, and the time left if there are no bars."""
        if not state.is_world_process_zero or not logs:
            return
        numbers = "  ".join(f"{name} {_number(logs[name])}" for name in _DISPLAYED if name in logs)
        line = f"step {state.global_step}/{state.max_steps}  {numbers}"
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
        """Stop the display, also after a training that failed."""
        if self._screen is not None:
            self._screen.stop()
            self._screen = self._steps = self._evaluation = None


def _number(value: Any) -> str:
    """Format a count as it is, other numbers with four digits, with powers of ten only for tiny and huge ones."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
