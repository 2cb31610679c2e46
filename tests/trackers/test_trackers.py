"""Do results, gains, flips and verdict reach the run that the training opened in each tracker, and no text of the data?

With the real packages, offline, in an environment of their own: `tests/trackers/environment.sh .venv-trackers`, then
`.venv-trackers/bin/python -m pytest -m nightly tests/trackers`.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.conftest import save_model, write_rows

pytestmark = [pytest.mark.nightly, pytest.mark.slow, pytest.mark.timeout(3600)]
for package in ("tensorboard", "trackio", "wandb", "mlflow"):
    pytest.importorskip(package, reason="made by tests/trackers/environment.sh")

# Words of question, document, title, answer, system text and probe; and what each store must hold.
TEXTS = ("Zebulon", "Quarrymoor", "xylophone", "Vorpalish", "Pride and Prejudice")
GAIN, EXIT = "selfaug/task/answer_nll/gain", "selfaug/gate/exit_code"


class Ran:
    """Folder of everything, the ids that the run folder keeps, and what was measured."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[str, dict[str, Any]] = json.loads((folder / "run/trackers.json").read_text())
        entry = json.loads((folder / "run/results.json").read_text())["parts"]["task"]["metrics"]["answer_nll"]
        self.gain = -entry["difference"]["value"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A training, an evaluation and a gate, all trackers at once; a part of the training is resumed."""
    folder = tmp_path_factory.mktemp("tracked")
    rows = [
        {
            "question": f"What did Zebulon find on day {number}?",
            "documents": [{"title": "Quarrymoor", "text": f"On day {number} Zebulon found the xylophone."}],
            "answer": "the xylophone",
        }
        for number in range(16)
    ]
    settings: dict[str, Any] = {
        "model_name_or_path": str(save_model(folder / "model")), "output_dir": "run", "held_out": 0.25,
        "dataset_name": str(write_rows(folder / "data.jsonl", rows)), "max_steps": 2, "use_cpu": True, "lora_r": 4,
        "gradient_checkpointing": False, "per_device_train_batch_size": 2, "logging_steps": 1, "learning_rate": 1e-3,
        "report_to": ["tensorboard", "trackio", "wandb", "mlflow"], "probe": "general", "probe_steps": 1,
        "prompt": {"system": "Vorpalish answers only."},
    }  # fmt: skip
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
        "WANDB_MODE": "offline", "WANDB_DIR": str(folder / "w"), "TRACKIO_DIR": str(folder / "trackio"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
    }  # fmt: skip
    (folder / "w").mkdir()
    (folder / "train.yaml").write_text(yaml.safe_dump(settings))
    verbs = [
        ["train", "--config", "train.yaml"],
        ["train", "--config", "train.yaml", "--max_steps", "3", "--resume_from_checkpoint"],
        ["evaluate", "run", "--max_new_tokens", "8"],
        ["gate", "run", "--max-drop", "task:answer_nll=100", "--min-gain", "task=-99pt"],
    ]
    kept = None
    for words in verbs:
        command = [sys.executable, "-m", "selfaug.cli.main", *words]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600)
        allowed = (0, 3) if words[0] == "gate" else (0,)
        assert done.returncode in allowed, done.stderr[-4000:]
        assert "could not be sent" not in done.stderr, done.stderr[-4000:]
        if words[0] == "train":
            # transformers prints a line as it is imported with WANDB_MODE=offline.
            printed = [line for line in done.stdout.splitlines() if "WANDB offline mode" not in line]
            assert [Path(line).name for line in printed] == ["adapter"], "a tracker printed where only data may stand"
            ids = json.loads((folder / "run/trackers.json").read_text())
            assert kept in (None, ids), "the resumed training opened other runs"
            kept = ids
    return Ran(folder)


def assert_texts_absent(found: Mapping[str, bytes], *present: str) -> None:
    whole = b"\n".join(found.values())
    for word in present:  # else the store is compressed, or another one was read
        assert word.encode() in whole, f"{word} is not in the store at all"
    for word in TEXTS:
        assert word.encode() not in whole, f"{word!r} of the data reached the tracker: {[*found]}"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_data_holds_the_texts(ran: Ran) -> None:
    read = (ran.folder / "data.jsonl").read_text() + (ran.folder / "train.yaml").read_text()
    read += (ran.folder / "run/checkpoints/generated/probe.jsonl").read_text()
    assert all(word in read for word in TEXTS)


def test_tensorboard(ran: Ran) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = ran.folder / "run" / ran.known["tensorboard"]["logging_dir"]
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [e.step for e in events.Scalars("train/probe_kl")] == [0, 1, 2, 3]
    assert [(e.step, pytest.approx(e.value)) for e in events.Scalars(GAIN)] == [(3, ran.gain)]
    assert events.Scalars(EXIT)[0].value in (0, 3)
    assert_texts_absent(files_of(folder), GAIN, EXIT, "probe_kl")


def test_mlflow(ran: Ran) -> None:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=ran.known["mlflow"]["tracking_uri"])
    run = client.get_run(ran.known["mlflow"]["run_id"])
    assert run.data.metrics[GAIN] == ran.gain
    assert run.data.metrics[EXIT] in (0, 3)
    assert [m.step for m in client.get_metric_history(run.info.run_id, "probe_kl")] == [0, 1, 2, 3]
    assert_texts_absent({"mlflow.db": (ran.folder / "mlflow.db").read_bytes()}, GAIN, EXIT, "probe_kl")


def test_trackio(ran: Ran) -> None:
    (file,) = (ran.folder / "trackio").glob("*.db")
    rows = sqlite3.connect(file).execute("select run_name, metrics from metrics").fetchall()
    assert {name for name, _ in rows} == {ran.known["trackio"]["name"]}
    logged: dict[str, Any] = {}
    for _, text in rows:
        logged |= json.loads(text)
    assert logged[GAIN] == pytest.approx(ran.gain)
    assert logged[EXIT] in (0, 3)
    assert_texts_absent(files_of(ran.folder / "trackio"), GAIN, EXIT, "probe_kl")


def test_wandb(ran: Ran) -> None:
    runs = sorted((ran.folder / "w/wandb").glob("offline-run-*"))
    # Offline W&B keeps a folder for each time that a run is opened; `wandb sync` joins those of one id.
    assert {run.name.rpartition("-")[2] for run in runs} == {ran.known["wandb"]["id"]}
    assert len(runs) == 4
    found = files_of(ran.folder / "w")
    assert not any(name.endswith("output.log") for name in found), "what the process printed would be uploaded"
    assert_texts_absent(found, "selfaug/task/answer_nll", "selfaug/gate/exit_code", "probe_kl")
