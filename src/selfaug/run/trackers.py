"""The runs that a training opened in trackers: kept by their ids in the run folder, and given numbers measured later.

Training logs reach the trackers by transformers' own callbacks (``--report_to``). Afterwards only numbers with their
names are sent: no prompt, no answer, no document.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.common.errors import tidy
from selfaug.common.files import json_of_ours, write_durably
from selfaug.common.terminal import say

if TYPE_CHECKING:
    from selfaug.run.folder import RunFolder

__all__ = ["TRACKERS", "go_on", "remember", "send"]

_Entry = dict[str, Any]
_PREFIX = "selfaug/"


def _package(name: str) -> Any:
    """Return a package that is not among our dependencies, imported where it is used alone."""
    return importlib.import_module(name)


# ---- which run is open ----------------------------------------------------------------------------------------------


def _tensorboard_run(callback: Any, folder: Path) -> _Entry:
    path = Path(callback.logging_dir).resolve()
    inside = path.is_relative_to(folder.resolve())
    return {"logging_dir": str(path.relative_to(folder.resolve()) if inside else path)}


def _trackio_run(callback: Any, folder: Path) -> _Entry:
    variables = _package("trackio").context_vars
    run = variables.current_run.get()
    return {"project": run.project, "name": run.name, "space_id": variables.current_space_id.get()}


def _wandb_run(callback: Any, folder: Path) -> _Entry | None:
    run = _package("wandb").run
    if run.disabled:  # by WANDB_MODE; what is measured later must not open a run in its place
        return None
    return {
        "id": run.id,
        "project": run.project,
        "entity": run.entity or None,
        "mode": "offline" if run.offline else None,
        "dir": str(Path(run.settings.root_dir).resolve()),
    }


def _mlflow_run(callback: Any, folder: Path) -> _Entry:
    mlflow = _package("mlflow")
    return {"run_id": mlflow.active_run().info.run_id, "tracking_uri": mlflow.get_tracking_uri()}


# ---- numbers of a run -----------------------------------------------------------------------------------------------


def _to_tensorboard(entry: _Entry, folder: Path, numbers: Mapping[str, float], step: int) -> None:
    # The path is whole if it lay outside the run folder.
    with _package("torch.utils.tensorboard").SummaryWriter(log_dir=str(folder / entry["logging_dir"])) as writer:
        for name, number in numbers.items():
            writer.add_scalar(name, number, step)


def _to_trackio(entry: _Entry, folder: Path, numbers: Mapping[str, float], step: int) -> None:
    trackio = _package("trackio")
    trackio.init(
        project=entry["project"], name=entry["name"], space_id=entry["space_id"], resume="must", embed=False,
        auto_log_gpu=False, auto_log_cpu=False,
    )  # fmt: skip
    trackio.log({**numbers, "train/global_step": step})
    trackio.finish()


def _to_wandb(entry: _Entry, folder: Path, numbers: Mapping[str, float], step: int) -> None:
    wandb = _package("wandb")
    run = wandb.run
    if run is None or run.id != entry["id"]:
        settings = wandb.Settings(console="off", x_disable_meta=True, x_save_requirements=False, x_disable_stats=True)
        run = wandb.init(
            id=entry["id"], project=entry["project"], entity=entry["entity"], mode=entry["mode"], dir=entry["dir"],
            resume="allow", settings=settings,
        )  # fmt: skip
    run.log({**numbers, "train/global_step": step})
    run.finish()


def _to_mlflow(entry: _Entry, folder: Path, numbers: Mapping[str, float], step: int) -> None:
    client = _package("mlflow").MlflowClient(tracking_uri=entry["tracking_uri"])
    for name, number in numbers.items():
        client.log_metric(entry["run_id"], re.sub(r"[^\w\-. :/]", "_", name), number, step=step)


_OPENED: Mapping[str, tuple[str, Callable[[Any, Path], _Entry | None]]] = {
    "tensorboard": ("TensorBoardCallback", _tensorboard_run),
    "trackio": ("TrackioCallback", _trackio_run),
    "wandb": ("WandbCallback", _wandb_run),
    "mlflow": ("MLflowCallback", _mlflow_run),
}
_SENT: Mapping[str, Callable[[_Entry, Path, Mapping[str, float], int], None]] = {
    "tensorboard": _to_tensorboard,
    "trackio": _to_trackio,
    "wandb": _to_wandb,
    "mlflow": _to_mlflow,
}
TRACKERS = tuple(_SENT)
"""Names of the trackers that get what is measured after training."""


def remember(folder: RunFolder, callbacks: Sequence[Any]) -> None:
    """Write into the run folder which runs transformers' callbacks have opened.

    Args:
        folder: Folder of the run.
        callbacks: Callbacks of the trainer.
    """
    known = json_of_ours(folder.trackers) or {}
    for name, (kind, run_of) in _OPENED.items():
        callback = next((one for one in callbacks if type(one).__name__ == kind), None)
        entry = None if callback is None else run_of(callback, folder.path)
        if entry is not None:
            known[name] = entry
    if known:
        write_durably(folder.trackers, json.dumps(known, indent=2) + "\n")


def go_on(folder: RunFolder, training: Any, *, resumed: bool) -> None:
    """Make transformers' callbacks go on in the runs of a resumed training, and keep texts out of W&B.

    W&B would upload what this process prints, and its command line. Variables and settings of the user win.

    Args:
        folder: Folder of the run.
        training: Settings of the training; its ``run_name`` is set for trackio, which knows a run by it.
        resumed: Whether the run was begun before.
    """
    os.environ.setdefault("WANDB_CONSOLE", "off")
    os.environ.setdefault("WANDB_X_DISABLE_META", "true")
    known = (json_of_ours(folder.trackers) or {}) if resumed else {}
    if "tensorboard" in known:
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder.path / known["tensorboard"]["logging_dir"]))
    if "wandb" in known:
        wandb = known["wandb"]
        also = {"WANDB_PROJECT": wandb["project"], "WANDB_ENTITY": wandb["entity"], "WANDB_MODE": wandb["mode"]}
        for name, value in {"WANDB_RUN_ID": wandb["id"], "WANDB_RESUME": "allow", **also}.items():
            if value is not None:
                os.environ.setdefault(name, value)
    if "mlflow" in known:
        os.environ.setdefault("MLFLOW_RUN_ID", known["mlflow"]["run_id"])
        os.environ.setdefault("MLFLOW_TRACKING_URI", known["mlflow"]["tracking_uri"])
    if "trackio" in known and training.run_name is None:
        training.run_name = known["trackio"]["name"]


def send(folder: RunFolder, numbers: Mapping[str, float]) -> None:
    """Send numbers to every tracker run of the training, at its last step; what fails is said and harms nothing.

    Args:
        folder: Folder of the run; one without tracker runs sends nothing.
        numbers: Numbers by name, to which ``selfaug/`` is put in front.
    """
    known = json_of_ours(folder.trackers) or {}
    step = int((folder.read_manifest().get("finished") or {}).get("steps") or 0) if known else 0
    named = {_PREFIX + name: float(number) for name, number in numbers.items()}
    sent = []
    for name, to in _SENT.items():
        if name not in known:
            continue
        try:
            with contextlib.redirect_stdout(sys.stderr):  # trackio prints, and stdout is for data
                to(known[name], folder.path, named, step)
            sent.append(name)
        except Exception as error:
            say(f"the numbers could not be sent to {name}: {tidy(error)}")
    if sent:
        say(f"{len(named)} numbers were sent to {', '.join(sent)}")
