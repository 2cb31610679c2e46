"""Runs a study, or runs that are only trained, so that it can be stopped at any time and resumed.

A run is an ordinary run folder, made by `selfaug train`, `selfaug evaluate` and optionally `selfaug shift` in
subprocesses. It is finished when it contains its results, and is then never repeated. A run that fails is reported, and
tried again at the next start.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, Protocol

from selfaug.common.errors import ConfigError
from selfaug.common.files import json_of_ours, write_durably
from selfaug.common.progress import Estimate
from selfaug.run.folder import RESULTS, SHIFT, RunFolder
from selfaug.study.grid import Run

__all__ = ["Failure", "Trainings", "folder_of", "is_finished", "run_all"]

_STAMP = "study.json"
_RESULTS = {"evaluate": RESULTS, "shift": SHIFT}
_LOG = "study.log"
_LOCK = "study.lock"
_DYING_SECONDS = 5.0  # a run that was just killed holds the lock until the system has ended it
_STOPPED = (-2, -15, 130, 143)


class Trainings(Protocol):
    """Runs that belong together, such as those of a study."""

    def runs(self) -> list[Run]:
        """Return the runs in their order."""

    def fingerprints(self, run: Run) -> dict[str, str]:
        """Return hashes of what the weights (``train``) and each wanted measurement of a run depend on."""

    def measuring(self, run: Run, verb: str) -> tuple[str, ...]:
        """Return the arguments of a measuring verb."""


@dataclass(frozen=True)
class Failure:
    """A run that ended with an error.

    Args:
        run: Run that failed.
        code: Exit code.
        says: Error message.
    """

    run: Run
    code: int
    says: str


def folder_of(study_folder: Path, run: Run) -> Path:
    """Return the folder of a run."""
    return study_folder / "runs" / run.name


def is_finished(study_folder: Path, study: Trainings, run: Run) -> bool:
    """Whether a run has its weights and its results.

    Raises:
        ConfigError: If its folder holds a run with other settings.
    """
    folder = folder_of(study_folder, run)
    stamp, wanted = json_of_ours(folder / _STAMP) or {}, study.fingerprints(run)
    if stamp.get("train", wanted["train"]) != wanted["train"]:
        raise ConfigError(
            f"{folder} holds a run with other settings, and runs of two calls with different ones are not mixed.",
            "name another --output_dir, or remove that folder.",
        )
    if RunFolder(folder).finished is None:
        return False
    return all(_is_measured(folder, verb, stamp, wanted) for verb in _RESULTS if verb in wanted)


def _is_measured(folder: Path, verb: str, stamp: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return stamp.get(verb) == wanted[verb] and (folder / _RESULTS[verb]).exists()


def run_all(
    study: Trainings, study_folder: Path, *, devices: Sequence[str | None], say: Callable[[str], None]
) -> list[Failure]:
    """Run everything that is not finished, with one process for each device, and return the failures.

    Args:
        study: Trainings to run.
        study_folder: Folder of the study.
        devices: GPU number of each process that runs in parallel, or ``None``.
        say: Function that receives a line for each run.

    Raises:
        ConfigError: If a run of this study is in progress already, or a folder contains a run with other settings.
    """
    with _alone(study_folder) as lock:
        return _run_all(study, study_folder, devices, say, lock)


@contextlib.contextmanager
def _alone(study_folder: Path) -> Iterator[int]:
    """Hold a lock that subprocesses inherit: one that outlives its parent must not get a second one beside it."""
    with (study_folder / _LOCK).open("w") as file:
        deadline = time.monotonic() + _DYING_SECONDS
        while not _locks(file):
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"a run of the comparison in {study_folder} is going on, and two would write into one folder.",
                    "wait until it ends, or stop it; what is finished stays.",
                )
            time.sleep(0.05)
        yield file.fileno()


def _locks(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _run_all(
    study: Trainings, study_folder: Path, devices: Sequence[str | None], say: Callable[[str], None], lock: int
) -> list[Failure]:
    every = list({run.name: run for run in study.runs()}.values())
    waiting = [run for run in every if not is_finished(study_folder, study, run)]
    done = len(every) - len(waiting)
    say(f"{len(every)} runs, {done} of them finished before")
    estimate = Estimate(len(every), done)
    failures: list[Failure] = []
    free = list(devices)
    running: dict[Future[Failure | None], tuple[Run, str | None]] = {}
    with ThreadPoolExecutor(len(devices)) as pool:
        while waiting or running:
            while waiting and free:
                run, device = waiting.pop(0), free.pop(0)
                running[pool.submit(_one, study, study_folder, run, device, lock)] = run, device
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                run, device = running.pop(future)
                free.append(device)
                failure = future.result()
                done += 1
                estimate.update(done)
                if failure is None:
                    left = estimate.left
                    say(f"{done} of {len(every)}: {run.name}" + (f"; {_rounded_up(left)} to go" if left else ""))
                elif failure.code in _STOPPED:
                    raise KeyboardInterrupt
                else:
                    failures.append(failure)
                    say(f"{done} of {len(every)}: {failure.run.name} failed: {failure.says}")
    return failures


def _rounded_up(seconds: float) -> str:
    """Format a time as hours, minutes and seconds, rounded up: runs of different methods take different times."""
    step = 10 if seconds < 600 else 60
    return str(timedelta(seconds=math.ceil(seconds / step) * step))


def _one(study: Trainings, study_folder: Path, run: Run, device: str | None, lock: int) -> Failure | None:
    folder = folder_of(study_folder, run)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = study.fingerprints(run)
    here = RunFolder(folder)
    # New weights need new measurements.
    measured = {} if here.finished is None else json_of_ours(folder / _STAMP) or {}
    stamp = {**measured, "train": wanted["train"]}
    write_durably(folder / _STAMP, json.dumps(stamp) + "\n")
    if here.finished is None:
        again = ["--resume_from_checkpoint", "true"] if here.has_checkpoint() else ["--overwrite_output_dir", "true"]
        failure = _verb(run, folder, ["train", *run.train, "--output_dir", str(folder), *again], device, lock)
        if failure is not None:
            return failure
    store = {"evaluate": ("--store", str(study_folder / "measured"))}
    for verb in _RESULTS:
        if verb not in wanted or _is_measured(folder, verb, stamp, wanted):
            continue
        words = [verb, str(folder), *study.measuring(run, verb), *store.get(verb, ())]
        failure = _verb(run, folder, words, device, lock)
        if failure is not None:
            return failure
        stamp[verb] = wanted[verb]
        write_durably(folder / _STAMP, json.dumps(stamp) + "\n")
    return None


def _verb(run: Run, folder: Path, words: Sequence[str], device: str | None, lock: int) -> Failure | None:
    environment = dict(os.environ)
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    with (folder / _LOG).open("a", encoding="utf-8") as log:
        start = log.tell()
        code = subprocess.run(
            [sys.executable, "-m", "selfaug", *words],
            stdout=log,
            stderr=log,
            env=environment,
            pass_fds=[lock],
            check=False,
        ).returncode
    if code == 0:
        return None
    text = (folder / _LOG).read_text("utf-8", errors="replace")[start:].strip()
    errors = [line for line in text.splitlines() if line.startswith("error")]
    last = errors[-1] if errors else (text.splitlines() or ["no word"])[-1]
    return Failure(run, code, f"{last} (exit code {code}; {folder / _LOG})")
