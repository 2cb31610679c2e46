"""Tests of run folders and checkpoints that the code before the rebuilding wrote (`tests/data/run_of_november`)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.cli.conftest import TRAIN, Cli

OLD = Path(__file__).parents[1] / "data" / "run_of_november"


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A copy of the old folder, as it would be had it been written here: its texts name its place."""
    folder = tmp_path / "old"
    shutil.copytree(OLD, folder)
    for file in ("config.yaml", "manifest.json", "adapter/adapter_config.json"):
        path = folder / "run" / file
        path.write_text(path.read_text().replace("/old/", f"{folder}/"))
    manifest = json.loads((folder / "run" / "manifest.json").read_text())
    assert manifest["git"]["commit"].startswith("de8ef96")
    assert "on_lost_answer" not in (folder / "run" / "config.yaml").read_text()  # a setting of today that it lacks
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "RUN", "--data", "OLD/records.jsonl", "--limit", "4"),
        ("shift", "RUN"),
        ("merge", "RUN", "--output_dir", "OLD/merged", "--dtype", "float32"),
        ("report", "RUN", "--format", "md"),
    ],
    ids=lambda words: words[0],
)
def test_a_finished_run_of_older_code_is_read(words: tuple[str, ...], older: Path, cli: Cli) -> None:
    result = cli(*(word.replace("RUN", str(older / "run")).replace("OLD", str(older)) for word in words))
    assert result.code == 0, result.err


def test_a_checkpoint_of_older_code_is_gone_on_with(older: Path, cli: Cli) -> None:
    run = older / "run"
    began = load_file(run / "checkpoints" / "checkpoint-3" / "adapter_model.safetensors")
    ended = load_file(run / "adapter" / "adapter_model.safetensors")
    shutil.rmtree(run / "adapter")
    words = ["--model_name_or_path", older / "model", "--dataset_name", older / "records.jsonl", "--output_dir", run]
    result = cli("train", *words, *TRAIN, "--max_steps", 6, "--save_total_limit", 5, "--resume_from_checkpoint")
    assert result.code == 0, result.err
    now = load_file(run / "adapter" / "adapter_model.safetensors")
    moved = max((ended[name] - began[name]).abs().max().item() for name in ended)
    # The old code's own last three steps; bit-equal on the machine that wrote it, rounding apart on others.
    assert max((ended[name] - now[name]).abs().max().item() for name in ended) < 1e-3 * moved
    assert len(json.loads((run / "manifest.json").read_text())["resumed"]) == 1
