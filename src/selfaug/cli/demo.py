"""`selfaug demo`: fine-tunes a small model of the package once with forgetting and once without.

The lab's model learns to answer from documents twice, with LoRA and with SelfAug, on the same rows with the same order,
seed and learning rate. Both runs are measured on the task and on everything that the model could do before. The demo
needs no network and no GPU.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from selfaug.cli.config import Call, Command, read
from selfaug.cli.outputs import check_writable
from selfaug.common.errors import ConfigError
from selfaug.common.options import option
from selfaug.common.terminal import emit, say
from selfaug.lab.task import Distance

__all__ = ["COMMAND", "METHODS", "run", "train_words"]

METHODS = {"lora": "sft", "selfaug": "selfaug"}
"""Method of each run, by its folder."""

TRAIN_ROWS, TEST_ROWS, SKILL_ITEMS = 1600, 200, 60
SETTINGS: dict[str, object] = {
    "learning_rate": 1e-2,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 16,
    "lora_dropout": 0.0,  # dropout would take a third of a step's time on a CPU
    "logging_steps": 15,
    "report_to": "none",
    "use_cpu": True,
}
"""Settings of both trainings; the learning rate is the best for LoRA's task score after one epoch (docs/lab.md)."""


@dataclass
class Settings:
    """Settings of `selfaug demo`."""

    model_name_or_path: str = option(
        "lab", "'lab', or the folder of a model that `selfaug lab make` made.", group="Model and task", metavar="MODEL"
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
    ("selfaug demo", "selfaug demo --documents 8 --alpha 4 --output_dir demo-of-mine"),
)


def run(call: Call[Settings]) -> int:
    """Make rows, train twice, measure, show the result, and return the exit code."""
    from selfaug.lab.shipped import resolve
    from selfaug.lab.task import Distance
    from selfaug.run.folder import REPORT, RunFolder

    settings = call.settings
    model = resolve(settings.model_name_or_path)
    if not (Path(model).expanduser() / "making.json").exists():
        raise ConfigError(
            f"{model!r} is no model of the lab, and the demo's questions are about the lab's world.",
            "give the folder of `selfaug lab make`; for your own model there is `selfaug train`.",
        )
    distance = Distance(documents=settings.documents)  # raises for numbers out of range
    if settings.alpha is not None and not settings.alpha > 0:
        raise ConfigError(f"alpha={settings.alpha} holds nothing to the base.", "give more than 0.")
    folder = Path(settings.output_dir).expanduser()
    runs = {name: folder / name for name in METHODS}
    if any(RunFolder(path).config.exists() for path in runs.values()) and not settings.overwrite_output_dir:
        raise ConfigError(
            f"output_dir {str(folder)!r} holds a demo already.", "name another folder, or pass --overwrite_output_dir."
        )
    check_writable(folder)
    began = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    # A demo in a checkout leaves git's status clean, as the caches of pytest and ruff do.
    (folder / ".gitignore").write_text("*\n", encoding="utf-8")
    train, test = _rows(folder, distance, settings.seed)
    for name, method in METHODS.items():
        words = train_words(method, model, train, runs[name], settings.seed, settings.alpha)
        _verb("train", words)
    for path in runs.values():
        _verb("evaluate", [
            path, "--data", test, "--general", "lab", "--general_limit", SKILL_ITEMS,
            "--batch_size", 100, "--store", folder / "measured", "--max_new_tokens", 24,
        ])  # fmt: skip
    page = folder / REPORT
    _verb("report", [*runs.values(), "--output", page, "--title", "LoRA and SelfAug on the lab's RAG task"])
    from selfaug.cli.demo_picture import draw
    from selfaug.cli.demo_shown import answers_text, lines, table_text

    measured = lines(runs, settings.documents)
    draw(measured, folder / "demo.svg")
    emit(table_text(measured))
    emit("")
    emit(answers_text(runs))
    emit("")
    emit(f"{page}")
    say(f"{time.perf_counter() - began:.0f} s. Go on: selfaug chat {runs['selfaug']} --compare")
    return 0


def train_words(method: str, model: str, train: Path, output: Path, seed: int, alpha: float | None) -> list[object]:
    """Return the words of `selfaug train` for one of the two runs."""
    words: list[object] = [
        "--method", method, "--model_name_or_path", model, "--dataset_name", train, "--output_dir", output,
        "--seed", seed, "--overwrite_output_dir", "true",
    ]  # fmt: skip
    if alpha is not None and method == "selfaug":
        words += ["--alpha", alpha]
    return words + [word for name, value in SETTINGS.items() for word in (f"--{name}", value)]


def _rows(folder: Path, distance: Distance, seed: int) -> tuple[Path, Path]:
    from selfaug.lab.task import rows
    from selfaug.lab.world import World

    paths = []
    for part, count in (("train", TRAIN_ROWS), ("test", TEST_ROWS)):
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
