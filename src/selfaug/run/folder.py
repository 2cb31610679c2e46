"""The run folder: the names of its files, the check whether a run may write there, and opening a finished run."""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from selfaug.common.errors import ConfigError
from selfaug.common.files import missing_path, read_yaml, write_durably
from selfaug.run.checkpoint import last_whole, numbered
from selfaug.run.manifest import read_manifest

if TYPE_CHECKING:
    from selfaug.data.prompts import Renderer
    from selfaug.run.foreign import Foreign

__all__ = [
    "ADAPTER_CONFIG", "CONFIG", "DESCRIPTION", "MAY_DIFFER", "REPORT", "RESULTS", "SCALE", "SHIFT", "RunFolder",
    "config_differences",
]  # fmt: skip

CONFIG, RESULTS, SHIFT, SCALE, REPORT = "config.yaml", "results.json", "shift.json", "scale.json", "report.html"
ADAPTER_CONFIG = "adapter_config.json"
"""PEFT's name of the file with an adapter's settings."""
DESCRIPTION = "measured.json"
"""File of a folder of measurements that says of which model of another trainer they are."""

_FILES = (CONFIG, "manifest.json", "log.jsonl", RESULTS, "samples.jsonl", SHIFT, SCALE, REPORT, "trackers.json")
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
        "generation_key_env", "probe_steps", "probe_limit", "probe_action",
    }
)  # fmt: skip
"""Settings that a resumed run may change: the length of training (from there on the learning rate follows the schedule
of the new length), the outputs and the hardware, but not the data, the model or the objective."""


def config_differences(
    old: Mapping[str, Any], new: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> dict[str, tuple[Any, Any]]:
    """Return ``{name: (old value, new value)}`` of the settings that differ and decide what is learnt.

    A setting that ``old`` lacks had its default: ``old`` was written by a version that did not have it yet.
    """
    known = {**(defaults or {}), **old}
    names = [name for name in {**old, **new} if name not in MAY_DIFFER]
    return {name: (known.get(name), new.get(name)) for name in names if known.get(name) != new.get(name)}


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, with its settings, log, checkpoints, finished weights and measurements.

    Args:
        path: Path of the folder, as ``--output_dir`` names it.
        foreign: Tuned model of another trainer; the folder then holds only what was measured of it.
    """

    path: Path
    foreign: Foreign | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @property
    def config(self) -> Path:
        """File of the resolved settings, which ``selfaug train --config`` can read."""
        return self.path / CONFIG

    @property
    def manifest(self) -> Path:
        """File of hashes, versions, device, seeds and the command line."""
        return self.path / "manifest.json"

    @property
    def log(self) -> Path:
        """File of the log, one JSON object for each event."""
        return self.path / "log.jsonl"

    @property
    def trackers(self) -> Path:
        """File of the runs that the training opened in trackers."""
        return self.path / "trackers.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of the trainer's ``checkpoint-N`` folders."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """Folder of the finished PEFT adapter with tokenizer, renderer and model card."""
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        """Folder of the finished model of a run without PEFT."""
        return self.path / "model"

    @property
    def results(self) -> Path:
        """File of the evaluation's results for base and tuned model."""
        return self.path / RESULTS

    @property
    def samples(self) -> Path:
        """File of the answers behind the results, one JSON object a line."""
        return self.path / "samples.jsonl"

    @property
    def evaluation(self) -> Path:
        """Folder of the finished parts of an evaluation."""
        return self.path / "evaluation"

    @property
    def shift(self) -> Path:
        """File of the measured distances of the tuned distributions from the base's."""
        return self.path / SHIFT

    @property
    def report(self) -> Path:
        """Page that shows the run."""
        return self.path / REPORT

    @property
    def finished(self) -> Path | None:
        """Folder of the finished adapter or model, or ``None`` while there is none."""
        if self.foreign is not None:
            return self.foreign.folder if self.foreign.files() else None
        return next((folder for folder in (self.adapter, self.model) if folder.is_dir()), None)

    @property
    def is_adapter(self) -> bool:
        """Whether the finished weights are an adapter, not a whole model."""
        return self.adapter.is_dir() if self.foreign is None else self.foreign.adapter

    @property
    def tokenizer(self) -> str:
        """Folder or hub name of the tokenizer of the finished weights."""
        return str(self.finished) if self.foreign is None else self.foreign.tokenizer

    def load_renderer(self) -> Renderer:
        """Return the prompt layout of the finished weights.

        Raises:
            ConfigError: If another trainer made them and the layout is not known.
            DataError: If its file is missing or damaged.
        """
        from selfaug.data.prompts import Renderer

        if self.foreign is None:
            assert self.finished is not None
            return Renderer.load(self.finished)
        if self.foreign.renderer is None:
            raise ConfigError(
                f"how the prompts of {self.foreign.name} were laid out in its training is not known: chat or plain "
                "(mode), the system text (system), the documents, and how it says that it has no answer (abstention)",
                """say it, such as --prompt '{"mode": "chat", "system": "...", "abstention": "..."}', or give the """
                "folder of a selfaug_renderer.json with --renderer (docs/evaluate.md).",
            )
        return self.foreign.renderer

    def has_checkpoint(self) -> bool:
        """Return whether there is a whole checkpoint to resume from."""
        return last_whole(self.checkpoints) is not None

    def read_config(self) -> dict[str, Any]:
        """Return the settings of the run.

        Raises:
            ConfigError: If ``config.yaml`` is missing or holds no mapping.
        """
        if self.foreign is not None:
            return self.foreign.config
        config = read_yaml(self.config, hint="restore the file, or train anew.")
        if not isinstance(config, dict):
            raise ConfigError(f"{self.config} is not a mapping of settings", "restore the file, or train anew.")
        return config

    def read_manifest(self) -> dict[str, Any]:
        """Return the manifest of the run; empty where there is none.

        Raises:
            ConfigError: If the manifest is damaged.
        """
        if self.foreign is not None:
            return self.foreign.manifest
        return read_manifest(self.manifest) if self.manifest.is_file() else {}

    @classmethod
    def at(cls, path: str | Path) -> RunFolder:
        """Return the folder of a run, or of what was measured of a tuned model of another trainer; nothing is checked.

        The folder of such a model, or its hub name, stands for the default folder of its measurements.

        Raises:
            ConfigError: If the description of the model is damaged.
        """
        from selfaug.run.foreign import Foreign, measured_of

        folder = Path(path).expanduser()
        if not any((folder / name).is_file() for name in (CONFIG, RESULTS, DESCRIPTION)):
            folder = measured_of(str(path)) or folder
        return cls(folder, Foreign.read(folder) if (folder / DESCRIPTION).is_file() else None)

    @classmethod
    def open(cls, path: str | Path, *, finished: bool = True) -> RunFolder:
        """Open a run that the user named.

        Raises:
            ConfigError: If the folder does not exist or holds no run, or with ``finished`` the run is not finished.
        """
        folder = cls.at(path)
        if not folder.path.is_dir():
            raise missing_path("the run folder", str(path), "give the --output_dir of a `selfaug train` run.")
        if folder.foreign is not None:
            if finished and folder.finished is None:
                raise ConfigError(
                    f"{folder.path} holds measurements of {folder.foreign.name}, whose weights are no longer in "
                    f"{folder.foreign.folder}",
                    "restore them, or name them where they are now with --adapter.",
                )
            return folder
        if not folder.config.is_file():
            if (folder.path / ADAPTER_CONFIG).is_file() and not (folder.path.resolve().parent / CONFIG).is_file():
                raise ConfigError(
                    f"{folder.path} is an adapter, and nothing has been measured of it yet",
                    f"measure it: `selfaug evaluate --adapter {shlex.quote(str(path))} --data FILE ...`.",
                )
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
        """Check that a run with these settings may write to the folder; nothing on disk is changed.

        Args:
            config: Resolved settings of the run.
            overwrite: Whether another run in the folder may be replaced.
            resume: Whether the run in the folder is to be resumed.
            defaults: Defaults of settings that the run in the folder may lack, being older.

        Raises:
            ConfigError: If the path is a file, the folder holds foreign files or another run, or the settings of a
                resumed run differ where they decide what is learnt.
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

        Only files of a run are removed; files of the user stay. A run that starts anew forgets the trackers of an
        attempt without a checkpoint, and removes torn checkpoints, as :meth:`check_free` has ensured that none is
        whole. Results from before the first step that record what made them (the base's samples and scores) stay, to
        be used again.
        """
        if overwrite:
            for name in _FILES:
                (self.path / name).unlink(missing_ok=True)
            for name in _FOLDERS:
                shutil.rmtree(self.path / name, ignore_errors=True)
        elif not resume:
            self.trackers.unlink(missing_ok=True)
            for torn in numbered(self.checkpoints):
                shutil.rmtree(torn, ignore_errors=True)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        head = "# The resolved settings of this run; `selfaug train --config` reads them back."
        write_durably(self.config, f"{head}\n{text}")

    def remove_if_empty(self) -> None:
        """Remove the empty folders of a run that never began."""
        with contextlib.suppress(OSError):
            self.checkpoints.rmdir()
            self.path.rmdir()


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
