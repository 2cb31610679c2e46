"""The processes of `selfaug train`: their number, and how they are started, stopped and waited for.

Run as a module, this file is the launcher. It runs ``accelerate launch`` in its own process, forwards SIGINT and
SIGTERM to the training processes, and exits with the code of the training process that failed first.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

from selfaug.common.errors import ConfigError, nearest
from selfaug.common.quiet import quieten, several_machines
from selfaug.common.terminal import say

__all__ = ["LaunchFlags", "is_launched", "launch", "processes_wanted"]

_NOT_OURS = frozenset({"help", "module", "no_python", "training_script", "training_script_args", "quiet"})


class LaunchFlags:
    """The flags of ``accelerate launch``, as accelerate's own parser defines them, and ``--accelerate_config``."""

    def __init__(self) -> None:
        from accelerate.commands.launch import launch_command_parser

        self._parser = launch_command_parser()
        self._parser.error = _refuse
        self._actions: dict[str, argparse.Action] = {
            flag.lstrip("-").replace("-", "_"): action
            for action in self._parser._actions
            for flag in action.option_strings
            if flag.startswith("--") and action.dest not in _NOT_OURS
        }

    def names(self) -> list[str]:
        """Return the names of all flags for ``accelerate launch``."""
        return [*self._actions, "accelerate_config"]

    def knows(self, name: str) -> bool:
        """Return whether a name, without dashes, is a flag of accelerate."""
        return name in self._actions or name == "accelerate_config"

    def words(self, name: str, value: Any, where: str) -> list[str]:
        """Convert a YAML entry to command-line words."""
        if name == "accelerate_config":
            return ["--config_file", _config_file(str(value))]
        if self._actions[name].nargs == 0:
            if not isinstance(value, bool):
                raise ConfigError(f"{where} is {value!r}; expected true or false", "correct the value in the file.")
            return [f"--{name}"] if value else []
        return [f"--{name}", str(value)]

    def take(self, words: Sequence[str], flags: Iterable[str]) -> list[str]:
        """Return the words for ``accelerate launch`` among those that the training parser does not know.

        Args:
            words: Words that the training parser does not know, in order.
            flags: Flags of the training parser, for a similar name in the message.

        Raises:
            ConfigError: If neither parser knows a word.
        """
        taken: list[str] = []
        rest = iter(words)
        for word in rest:
            flag, equals, value = word.partition("=")
            name = flag.lstrip("-").replace("-", "_")
            if not flag.startswith("--") or not self.knows(name):
                _refuse_word(
                    flag if flag.startswith("-") else word, [*flags, *(f"--{known}" for known in self.names())]
                )
            if name != "accelerate_config" and self._actions[name].nargs == 0:
                taken.append(flag)
                continue
            value = value if equals else next(rest, "")
            if not value:
                raise ConfigError(f"{flag} needs a value", f"write {flag} VALUE.")
            taken += ["--config_file", _config_file(value)] if name == "accelerate_config" else [flag, value]
        return taken

    def check(self, words: Sequence[str]) -> argparse.Namespace:
        """Check types and choices with accelerate's parser."""
        parsed: argparse.Namespace = self._parser.parse_args([*words, "script"])
        if parsed.config_file is not None and not Path(parsed.config_file).is_file():
            raise ConfigError(
                f"the accelerate configuration {parsed.config_file} does not exist", "check the path of --config_file."
            )
        for name in ("num_processes", "num_machines"):
            number = getattr(parsed, name)
            if number is not None and number < 1:
                raise ConfigError(f"{name} is {number}, and it counts {name[4:]}", "give 1 or more, or leave it out.")
        if parsed.mixed_precision == "fp8":
            from accelerate.utils import is_fp8_available

            if not is_fp8_available():
                raise ConfigError(
                    "mixed_precision fp8 needs Transformer Engine, MS-AMP or torchao, and none is installed",
                    "install one of them, or use --bf16 true.",
                )
        return parsed


def _refuse(message: str) -> NoReturn:
    raise ConfigError(message, "`accelerate launch --help` lists the launcher's flags.")


def _refuse_word(word: str, known: Sequence[str]) -> NoReturn:
    if word.startswith("-"):
        raise ConfigError(
            f"`selfaug train` does not know {word!r}.{nearest(word.replace('-', '_').replace('__', '--', 1), known)}",
            "`selfaug train --help-all` lists every flag; `accelerate launch --help` those of the launcher.",
        )
    raise ConfigError(f"`selfaug train` takes no bare words, and got {word!r}", "name the data with --dataset_name.")


def _config_file(name: str) -> str:
    """Return a path as it is, and for a name such as ``zero3`` the file that trl ships under it."""
    if Path(name).is_file():
        return name
    shipped = {Path(entry.name).stem: entry for entry in resources.files("trl.accelerate_configs").iterdir()}
    if name in shipped:
        return str(shipped[name])
    known = sorted(stem for stem, entry in shipped.items() if entry.name.endswith(".yaml"))
    raise ConfigError(
        f"accelerate_config {name!r} is neither a file nor a configuration that trl ships.{nearest(name, known)}",
        f"give a file, or one of {', '.join(known)}.",
    )


def is_launched() -> bool:
    """Return whether this process is one of several that a launcher started."""
    return "LOCAL_RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


def processes_wanted(words: Sequence[str], *, use_cpu: bool) -> list[str] | None:
    """Return the words for ``accelerate launch``, or ``None`` where one process is enough.

    Several visible GPUs are used by default, as in ``trl sft``; a single process would fall back to replicating the
    model in threads.
    """
    import torch

    parsed = LaunchFlags().check(words)
    requested = parsed.num_processes or 1
    if (
        parsed.multi_gpu
        and parsed.num_processes is None
        and parsed.config_file is None
        and torch.cuda.device_count() < 2
    ):
        raise ConfigError(
            f"multi_gpu starts several processes, and there are {torch.cuda.device_count()} GPUs and no "
            "--num_processes",
            "give --num_processes, or leave --multi_gpu out.",
        )
    on_cpu = use_cpu or parsed.cpu or not torch.cuda.is_available()
    if on_cpu and requested > 1 and parsed.config_file is None:
        # accelerate starts CPU processes only through MPI; its GPU launcher is torchrun, which works without GPUs.
        kept = [word for word in words if word != "--cpu"]
        return [*kept, "--multi_gpu"] if "--multi_gpu" not in kept else kept
    if words or (torch.cuda.device_count() > 1 and not use_cpu):
        return list(words)
    return None


def launch(words: Sequence[str], train_words: Sequence[str]) -> int:
    """Start ``selfaug train`` under ``accelerate launch`` and return its exit code.

    Args:
        words: Flags of ``accelerate launch``.
        train_words: Words after ``selfaug train``, launch flags included; the training processes read them again.
    """
    parsed = LaunchFlags().check(words)
    if (parsed.num_machines or 1) > 1:
        several_machines()
    say(f"starting {parsed.num_processes or 'several'} processes ...")
    command = [sys.executable, "-m", __spec__.name, *words, "--module", "selfaug", "train", *train_words]
    # In the same session a Ctrl-C would reach the training processes twice.
    child = subprocess.Popen(command, start_new_session=True)
    previous = {number: signal.signal(number, lambda got, _: child.send_signal(got)) for number in _FORWARDED}
    try:
        code = child.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


_FORWARDED = (signal.SIGINT, signal.SIGTERM)


def _forward(number: int, _: object) -> None:
    import psutil  # type: ignore[import-untyped]  # accelerate brings it; it has no types

    for worker in psutil.Process().children():
        worker.send_signal(number)


def _follow_parent(parent: int) -> None:
    # A killed parent cannot forward signals, and its training must not continue in the background.
    while os.getppid() == parent:
        time.sleep(1.0)
    _forward(signal.SIGTERM, None)


def _main(words: Sequence[str]) -> int:
    """Run ``accelerate launch`` in this process, and return the exit code of the first training process that failed."""
    quieten()
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    threading.Thread(target=_follow_parent, args=(os.getppid(),), daemon=True).start()
    for number in _FORWARDED:
        signal.signal(number, _forward)
    arguments = launch_command_parser().parse_args(list(words))
    # On a signal torchrun kills its workers after 30 seconds, but ours save a checkpoint, which may take longer.
    arguments.signals_to_handle = "SIGHUP,SIGQUIT"
    try:
        launch_command(arguments)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
    except subprocess.CalledProcessError as error:
        code = error.returncode
    else:
        return 0
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
