"""The run folder: the names of its files, what may be written there, and opening a finished one."""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from selfaug.common.errors import ConfigError
from selfaug.common.files import missing_path, read_yaml, write_durably
from selfaug.run.checkpoint import last_whole, numbered
from selfaug.run.manifest import read_manifest

__all__ = ["ADAPTER_CONFIG", "CONFIG", "MAY_DIFFER", "REPORT", "RESULTS", "SHIFT", "RunFolder", "config_differences"]

CONFIG, RESULTS, SHIFT, REPORT = "config.yaml", "results.json", "shift.json", "report.html"
ADAPTER_CONFIG = "adapter_config.json"
"""PEFT's name for an adapter's settings."""

_FILES = (CONFIG, "manifest.json", "log.jsonl", RESULTS, "samples.jsonl", SHIFT, REPORT)
_FOLDERS = ("checkpoints", "adapter", "model", "evaluation")

MAY_DIFFER = frozenset(
    {
        "output_dir", "num_train_epochs",
        "max_steps", "logging_strategy", "logging_steps", "logging_first_step", "log_level", "log_level_replica",
        "log_on_each_node", "disable_tqdm", "report_to", "run_name", "project", "eval_strategy", "eval_steps",
        "eval_delay", "eval_on_start", "save_strategy", "save_steps", "save_total_limit", "save_only_model",
        "push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision",
        "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor",
        "dataloader_persistent_workers", "dataset_num_proc", "skip_memory_metrics", "ddp_timeout", "local_rank",
        "objective_memory_mb", "reference_slice", "reference_cache", "use_cpu", "generation_batch_size",
        "generation_key_env",
    }
)  # fmt: skip
"""Settings that a resumed run may change: how long it trains (the learning rate's schedule is stretched from there on),
what is written, where it runs; not the data, the model or the objective."""


def config_differences(
    old: Mapping[str, Any], new: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> dict[str, tuple[Any, Any]]:
    """``{name: (old value, new value)}`` of the settings that decide what is learnt and are not the same.

    A setting that ``old`` lacks had its default there: an older version, which did not know it, wrote ``old``.
    """
    known = {**(defaults or {}), **old}
    names = [name for name in {**old, **new} if name not in MAY_DIFFER]
    return {name: (known.get(name), new.get(name)) for name in names if known.get(name) != new.get(name)}


@dataclass(frozen=True)
class RunFolder:
    """``config.yaml``, ``manifest.json``, ``log.jsonl``, ``checkpoints/``, ``adapter/`` (``model/`` without PEFT).

    What is measured of a run lies there, too.

    Args:
        path: The folder itself; what ``--output_dir`` names.
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @property
    def config(self) -> Path:
        """The resolved settings; ``selfaug train --config`` reads them back."""
        return self.path / CONFIG

    @property
    def manifest(self) -> Path:
        """Hashes, versions, device, seeds, command line."""
        return self.path / "manifest.json"

    @property
    def log(self) -> Path:
        """One JSON object a log event."""
        return self.path / "log.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The trainer's ``checkpoint-N`` folders."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The finished PEFT adapter with tokenizer, renderer and model card."""
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        """The finished model of a run without PEFT."""
        return self.path / "model"

    @property
    def results(self) -> Path:
        """What was measured of base and tuned model."""
        return self.path / RESULTS

    @property
    def samples(self) -> Path:
        """The answers behind the results, one JSON object a line."""
        return self.path / "samples.jsonl"

    @property
    def evaluation(self) -> Path:
        """The finished parts of an evaluation."""
        return self.path / "evaluation"

    @property
    def shift(self) -> Path:
        """How far the tuned distributions are from the base's."""
        return self.path / SHIFT

    @property
    def report(self) -> Path:
        """The page that shows all of it."""
        return self.path / REPORT

    @property
    def finished(self) -> Path | None:
        """The folder of the finished adapter or model, or ``None`` while there is none."""
        return next((folder for folder in (self.adapter, self.model) if folder.is_dir()), None)

    def has_checkpoint(self) -> bool:
        """Whether there is a whole checkpoint to go on from."""
        return last_whole(self.checkpoints) is not None

    def read_config(self) -> dict[str, Any]:
        """The settings of the run.

        Raises:
            ConfigError: If ``config.yaml`` is missing or is no mapping.
        """
        config = read_yaml(self.config, hint="restore the file, or train anew.")
        if not isinstance(config, dict):
            raise ConfigError(f"{self.config} is not a mapping of settings", "restore the file, or train anew.")
        return config

    def read_manifest(self) -> dict[str, Any]:
        """The manifest of the run; empty where there is none.

        Raises:
            ConfigError: If it is damaged.
        """
        return read_manifest(self.manifest) if self.manifest.is_file() else {}

    @classmethod
    def open(cls, path: str | Path, *, finished: bool = True) -> RunFolder:
        """A run that the user named.

        Raises:
            ConfigError: If the folder does not exist or is no run, or has not ``finished`` where it must have.
        """
        folder = cls(Path(path).expanduser())
        if not folder.path.is_dir():
            raise missing_path("the run folder", str(path), "give the --output_dir of a `selfaug train` run.")
        if not folder.config.is_file():
            outer = folder.path.resolve().parent
            inside = (outer / CONFIG).is_file()
            raise ConfigError(
                f"{folder.path} is not a run folder: it has no {CONFIG}",
                f"give {outer}." if inside else "give the --output_dir of a `selfaug train` run.",
            )
        if finished and folder.finished is None:
            raise ConfigError(
                f"the run in {folder.path} has not finished: it has neither adapter/ nor model/",
                f"finish it: `selfaug train --config {shlex.quote(str(folder.config))} --resume_from_checkpoint`.",
            )
        return folder

    def check_free(
        self,
        config: Mapping[str, Any],
        *,
        overwrite: bool,
        resume: bool,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        """Refuse a folder that a run with these settings may not write to; changes nothing on disk.

        Args:
            config: Resolved settings of the run.
            overwrite: Whether another run in the folder may be replaced.
            resume: Whether the run in the folder is to be gone on with.
            defaults: Defaults of settings that the run in the folder may be too old to know.

        Raises:
            ConfigError: If the path is a file, the folder holds files that are not ours or another run, or a run is to
                be resumed with settings that decide what is learnt and differ.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"output_dir {self.path} is a file", "give a folder that is new or empty.")
        entries = sorted(entry.name for entry in self.path.iterdir()) if self.path.is_dir() else []
        if overwrite or not entries:
            return
        ways_out = "give another --output_dir, or pass --overwrite_output_dir true to replace the run in it."
        if not self.config.is_file():
            raise ConfigError(
                f"output_dir {self.path} is not empty and holds no run: it has {_some(entries)}",
                "give another --output_dir, or pass --overwrite_output_dir true to write beside these files.",
            )
        differing = config_differences(self.read_config(), config, defaults)
        changed = "; ".join(f"{name}: {old!r} there, {new!r} now" for name, (old, new) in list(differing.items())[:5])
        if differing and (resume or self.has_checkpoint() or self.finished):
            raise ConfigError(f"output_dir {self.path} holds another run ({changed})", ways_out)
        if not resume and (self.has_checkpoint() or self.finished):
            state = "finished" if self.finished else "unfinished"
            raise ConfigError(
                f"output_dir {self.path} holds a{'n' if state[0] == 'u' else ''} {state} run with the same settings",
                f"pass --resume_from_checkpoint to go on with it; or {ways_out}",
            )

    def create(self, config: Mapping[str, Any], *, overwrite: bool = False, resume: bool = False) -> None:
        """Make the folder and write ``config.yaml``; with ``overwrite`` an older run in it is removed first.

        Only what a run writes is removed: a file of the user's that lies there stays. A run that begins anew removes
        torn checkpoints; :meth:`check_free` has seen that there is no whole one. What was made before the first step
        and knows what it was made by (samples of the base's, its scores) stays, to be used again.
        """
        if overwrite:
            for name in _FILES:
                (self.path / name).unlink(missing_ok=True)
            for name in _FOLDERS:
                shutil.rmtree(self.path / name, ignore_errors=True)
        elif not resume:
            for torn in numbered(self.checkpoints):
                shutil.rmtree(torn, ignore_errors=True)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        head = "# The resolved settings of this run; `selfaug train --config` reads them back."
        write_durably(self.config, f"{head}\n{text}")

    def remove_if_empty(self) -> None:
        """Take back folders that were made for a run that never began."""
        with contextlib.suppress(OSError):
            self.checkpoints.rmdir()
            self.path.rmdir()


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
