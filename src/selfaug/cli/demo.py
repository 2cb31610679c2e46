"""`selfaug demo`: fine-tunes a small model once with forgetting and once without.

The model learns to answer from documents twice, with LoRA and with SelfAug, on the same rows with the same order, seed
and learning rate. Both runs are measured on the task and on what the model could do before. The lab's model comes with
the package; `smollm2`, a real instruct model of 135M parameters, is downloaded (93 MB). A demo that was stopped goes on
when it is called again.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from selfaug.cli.config import Call, Command, read
from selfaug.cli.outputs import check_writable
from selfaug.common.errors import ConfigError
from selfaug.common.options import option
from selfaug.common.store import write_whole
from selfaug.common.terminal import emit, say
from selfaug.lab.task import Distance
from selfaug.run.folder import REPORT, RunFolder

__all__ = ["COMMAND", "LAB", "METHODS", "SMOLLM2", "Plan", "run", "train_words"]

METHODS = {"lora": "sft", "selfaug": "selfaug"}
"""Method of each run, by its folder."""

_STARTED = "started.json"


@dataclass(frozen=True)
class Plan:
    """What a demo trains on and measures, for one kind of model.

    Args:
        training: Settings of both trainings.
        train_rows: Number of questions that are trained on.
        test_rows: Number of questions that are asked afterwards.
        general: General ability that is measured, and settings of how, as words of `selfaug evaluate`.
    """

    training: Mapping[str, object]
    train_rows: int
    test_rows: int
    general: Sequence[object]


LAB = Plan(
    {
        "learning_rate": 1e-2,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 16,
        "lora_dropout": 0.0,  # dropout would take a third of a step's time on a CPU
        "logging_steps": 15,
        "report_to": "none",
        "use_cpu": True,
    },
    1600,
    200,
    ("--general", "lab", "--general_limit", 60, "--batch_size", 100),
)
"""With a model of the lab; the learning rate is the best for LoRA's task score after one epoch (docs/lab.md)."""

SMOLLM2 = Plan(
    {
        "learning_rate": 4e-3,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "lora_dropout": 0.0,
        "logging_steps": 5,
        "save_strategy": "steps",
        "save_steps": 10,
        "save_total_limit": 1,
        "probe": "general",
        "probe_steps": 20,
        "report_to": "none",
    },
    240,
    60,
    ("--general", "offline", "--general_limit", 60, "--max_gen_toks", 96, "--batch_size", 20),
)
"""With SmolLM2-135M-Instruct: a fast rate, which forgets (docs/real-model.md)."""


@dataclass
class Settings:
    """Settings of `selfaug demo`."""

    model_name_or_path: str = option(
        "lab",
        "'lab', 'smollm2' (a real instruct model, half an hour on two cores), or the folder of a model that "
        "`selfaug lab make` made.",
        group="Model and task",
        metavar="MODEL",
    )
    documents: int = option(Distance.documents, "Number of documents of each question, 1 to 20.")
    alpha: float | None = option(None, "Weight of the alignment.", shown="that of `selfaug train`")
    seed: int = option(0, "Seed of rows, order and adapters.")
    output_dir: str = option(
        "selfaug-demo", "Folder of both runs, the table's data and the page.", group="Output", metavar="FOLDER"
    )
    overwrite_output_dir: bool = option(False, "Remove the demo that FOLDER holds.")


COMMAND = Command(
    "demo",
    Settings,
    __doc__ or "",
    ("selfaug demo", "selfaug demo --model_name_or_path smollm2 --documents 2 --output_dir demo-of-smollm2"),
)


def run(call: Call[Settings]) -> int:
    """Make rows, train twice, measure, show the result, and return the exit code."""
    from selfaug.lab import smollm2
    from selfaug.lab.shipped import resolve

    settings = call.settings
    distance = Distance(documents=settings.documents)  # raises for numbers out of range
    if settings.alpha is not None and not settings.alpha > 0:
        raise ConfigError(f"alpha={settings.alpha} holds nothing to the base.", "give more than 0.")
    folder = Path(settings.output_dir).expanduser()
    runs = {name: folder / name for name in METHODS}
    _check_free(folder, settings)
    model = resolve(settings.model_name_or_path)
    fetched = settings.model_name_or_path == smollm2.NAME != model  # no folder of that name
    plan = SMOLLM2 if fetched else LAB
    if plan is LAB and not (Path(model).expanduser() / "making.json").exists():
        raise ConfigError(
            f"{model!r} is no model of the lab, and the demo's questions are about the lab's world.",
            "give 'smollm2' or the folder of `selfaug lab make`; for your own model there is `selfaug train`.",
        )
    check_writable(folder)
    began = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / _STARTED, json.dumps(_choices(settings)))
    # A demo in a checkout leaves git's status clean, as the caches of pytest and ruff do.
    (folder / ".gitignore").write_text("*\n", encoding="utf-8")
    train, test = _rows(folder, plan, distance, settings.seed)
    for name, method in METHODS.items():
        _train(RunFolder(runs[name]), train_words(method, model, train, settings, plan))
    for path in runs.values():
        _verb("evaluate", [path, "--data", test, *plan.general, "--store", folder / "measured", "--max_new_tokens", 24])
    page = folder / REPORT
    _verb("report", [*runs.values(), "--output", page, "--title", "LoRA and SelfAug on the lab's RAG task"])
    from selfaug.cli.demo_picture import draw
    from selfaug.cli.demo_shown import answers_text, drift_text, lines, table_text

    measured = lines(runs, settings.documents)
    draw(measured, folder / "demo.svg")
    (folder / _STARTED).unlink()
    emit(table_text(measured))
    emit("")
    for text in filter(None, (drift_text(runs), answers_text(runs))):
        emit(text)
        emit("")
    emit(f"{page}")
    say(f"{time.perf_counter() - began:.0f} s. Go on: selfaug chat {runs['selfaug']} --compare")
    return 0


def _choices(settings: Settings) -> dict[str, object]:
    """Return what decides the demo's result."""
    return {name: getattr(settings, name) for name in ("model_name_or_path", "documents", "alpha", "seed")}


def _check_free(folder: Path, settings: Settings) -> None:
    """Check that the folder holds nothing but a demo with the same settings that was stopped, or that may be replaced.

    Raises:
        ConfigError: If it does.
    """
    started = folder / _STARTED
    runs = [run for name in METHODS if (run := RunFolder(folder / name)).config.exists()]
    others = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    if others and not runs and not started.exists():
        raise ConfigError(
            f"output_dir {str(folder)!r} holds no demo but other files ({', '.join(others[:3])}), and some might be "
            "overwritten.",
            "name a folder that is new or empty.",
        )
    if settings.overwrite_output_dir:
        for run in runs:
            shutil.rmtree(run.path)
        return
    if not started.exists():
        if runs:
            raise ConfigError(
                f"output_dir {str(folder)!r} holds a demo already.",
                "name another folder, or pass --overwrite_output_dir.",
            )
    elif json.loads(started.read_text(encoding="utf-8")) != _choices(settings):
        raise ConfigError(
            f"output_dir {str(folder)!r} holds a demo with other settings that was stopped.",
            "give its settings to go on with it, name another folder, or pass --overwrite_output_dir.",
        )


def train_words(method: str, model: str, train: Path, settings: Settings, plan: Plan) -> list[object]:
    """Return the words of `selfaug train` for one of the two runs, but for its folder."""
    words: list[object] = [
        "--method", method, "--model_name_or_path", model, "--dataset_name", train, "--seed", settings.seed,
    ]  # fmt: skip
    if settings.alpha is not None and method == "selfaug":
        words += ["--alpha", settings.alpha]
    return words + [word for name, value in plan.training.items() for word in (f"--{name}", value)]


def _train(run: RunFolder, words: list[object]) -> None:
    """Train, go on where it was stopped, or leave a finished run as it is."""
    if run.finished is not None:
        return
    again = "--resume_from_checkpoint" if run.has_checkpoint() else "--overwrite_output_dir"
    _verb("train", [*words, "--output_dir", run.path, again, "true"])


def _rows(folder: Path, plan: Plan, distance: Distance, seed: int) -> tuple[Path, Path]:
    from selfaug.lab.task import rows
    from selfaug.lab.world import World

    paths = []
    for part, count in (("train", plan.train_rows), ("test", plan.test_rows)):
        path = folder / f"{part}.jsonl"
        made = rows(part, count, World.make(), distance, seed)  # type: ignore[arg-type]
        path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in made), encoding="utf-8")
        paths.append(path)
    return paths[0], paths[1]


def _verb(name: str, words: Sequence[object]) -> None:
    """Run a verb in this process as a user would, without its data on stdout, which the demo shows at the end."""
    text = [str(word) for word in words]
    say(f"\n$ {shlex.join(['selfaug', name, *text])}")
    module = importlib.import_module(f"selfaug.cli.{name}")
    with contextlib.redirect_stdout(io.StringIO()):
        code = module.run(read(module.COMMAND, text))
    if code:
        raise SystemExit(code)
