"""Do SIGINT, SIGTERM and SIGKILL leave a run of the command line that goes on as if nothing had happened?"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from selfaug.common.errors import ConfigError
from selfaug.run.checkpoint import last_whole
from tests.integration import small
from tests.integration.steps import SEQUENCES, run

STEPS = 60
ADAPTER = Path("adapter") / "adapter_model.safetensors"


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}


def start(*words: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "selfaug", "train", *map(str, words)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True
    )


def logged(run: Path) -> list[dict[str, Any]]:
    """Entries of steps; the last line may be half-written."""
    text = (run / "log.jsonl").read_text() if (run / "log.jsonl").is_file() else ""
    entries = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    return [entry for entry in entries if "loss" in entry]


def stop(process: subprocess.Popen[str], run: Path, number: int, *, after: int) -> tuple[int, str]:
    """Send a signal once step ``after`` is logged; exit code and stderr."""
    # What an earlier part of the run logged beyond its last checkpoint is gone once this one trains.
    marker = time.time()
    while not any(e["step"] >= after and e["time"] >= marker for e in logged(run)):
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.01)
    process.send_signal(number)
    _, talk = process.communicate(timeout=120)
    return process.returncode, talk


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("inputs")
    small.save_model(folder / "model")
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in small.rows(60)))
    settings = {
        "model_name_or_path": folder / "model", "dataset_name": data, "max_steps": STEPS, "save_steps": 7,
        "save_total_limit": 2, "packing": "true", "max_length": 64, "align_fraction": 0.125, "reference": "initial",
        "lora_dropout": 0.1, "lora_r": 4, "learning_rate": 0.01, "gradient_checkpointing": "false", "logging_steps": 1,
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "report_to": "none", "use_cpu": "true",
    }  # fmt: skip
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


@pytest.mark.nightly
@pytest.mark.slow
def test_stopped_three_ways_a_run_ends_with_the_same_adapter(flags: list[str], tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    first = start(*flags, "--output_dir", whole)
    out, talk = first.communicate(timeout=300)
    assert first.returncode == 0, talk[-3000:]
    assert out == f"{whole / 'adapter'}\n", "data alone belongs on stdout"

    resume = ["--config", stopped / "config.yaml", "--resume_from_checkpoint"]
    code, talk = stop(start(*flags, "--output_dir", stopped), stopped, signal.SIGKILL, after=9)
    assert code == -signal.SIGKILL
    before = last_whole(stopped / "checkpoints")
    assert before is not None, "killed before the first checkpoint: nothing was resumed below"

    code, talk = stop(start(*resume), stopped, signal.SIGINT, after=20)
    assert code == 130, talk[-3000:]
    assert "Traceback" not in talk
    assert "--resume_from_checkpoint" in talk, "what to do next is not said"
    at = last_whole(stopped / "checkpoints")
    assert at is not None
    assert int(at.name.split("-")[1]) == logged(stopped)[-1]["step"] >= 20, "the step of the signal was not saved"
    assert not (stopped / ADAPTER).exists()

    code, talk = stop(start(*resume), stopped, signal.SIGTERM, after=35)
    assert code == 143, talk[-3000:]
    assert "Traceback" not in talk
    last = start(*resume)
    _, talk = last.communicate(timeout=300)
    assert last.returncode == 0, talk[-3000:]

    assert (stopped / ADAPTER).read_bytes() == (whole / ADAPTER).read_bytes()
    steps = [entry["step"] for entry in logged(stopped)]
    assert steps == list(range(1, STEPS + 1)), "a step is logged twice, or not at all"
    for name in ("loss", "nll", "grad_norm", "num_tokens"):
        assert [e[name] for e in logged(stopped)] == [e[name] for e in logged(whole)], name
    resumed = json.loads((stopped / "manifest.json").read_text())["resumed"]
    assert [entry["checkpoint"] for entry in resumed][:2] == [before.name, at.name]
    assert len(resumed) == 3


@pytest.mark.nightly
@pytest.mark.slow
def test_a_second_signal_ends_at_once_and_a_short_run_saves(flags: list[str], tmp_path: Path) -> None:
    short = start(*flags, "--output_dir", tmp_path / "short", "--max_steps", "3", "--save_steps", "500")
    long = start(*flags, "--output_dir", tmp_path / "long", "--max_steps", "5000", "--save_steps", "5000")
    while not logged(tmp_path / "long"):
        assert long.poll() is None, long.communicate()[1][-3000:]
        time.sleep(0.01)
    long.send_signal(signal.SIGSTOP)  # both signals are there before the next step ends
    for number in (signal.SIGINT, signal.SIGTERM):
        long.send_signal(number)
    long.send_signal(signal.SIGCONT)
    _, talk = long.communicate(timeout=120)
    assert long.returncode in (130, 143), talk[-3000:]
    assert last_whole(tmp_path / "long" / "checkpoints") is None, "the second signal waited for a checkpoint"
    _, talk = short.communicate(timeout=300)
    assert short.returncode == 0, talk[-3000:]
    assert last_whole(tmp_path / "short" / "checkpoints") == tmp_path / "short" / "checkpoints" / "checkpoint-3"


def test_a_checkpoint_of_the_model_alone_is_not_resumed(tmp_path: Path) -> None:
    """transformers would go on with a fresh optimizer, and say nothing."""
    settings = {"save_strategy": "steps", "save_steps": 1, "save_only_model": True}
    trainer = run(SEQUENCES["single-turn"], tmp_path, **settings).trainer
    assert trainer is not None
    assert last_whole(tmp_path) == tmp_path / "checkpoint-1"
    with pytest.raises(ConfigError, match="save_only_model"):
        trainer.train(resume_from_checkpoint=True)
