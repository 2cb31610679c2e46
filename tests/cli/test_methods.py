"""Do methods reach the run folder as the command line names them, and what is refused before anything is written?"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from .conftest import TRAIN, Cli, records, write_rows


def words(model: Path, data: Path, run: Path, *more: Any) -> list[str]:
    given = ["--model_name_or_path", model, "--dataset_name", data, "--output_dir", run, "--max_steps", 2, *TRAIN]
    return ["train", *map(str, [*given, *more])]


def test_a_combination_with_options_and_data_of_its_own(cli: Cli, model: Path, data: Path, tmp_path: Path) -> None:
    """Everything at once: two parts with options, one with a file, one that acts when training is over."""
    general, run = write_rows(tmp_path / "general.jsonl", records(8)), tmp_path / "run"
    options = f"replay_data={general},replay_ratio=0.5,adapter_scale=0"
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "w5 w6 w7"}\n')
    more = ("--method_options", options, "--align_data", texts)
    result = cli(*words(model, data, run, "--method", "selfaug+replay+wise-ft", *more))
    assert result.code == 0, result.err
    assert "6 rows of" in result.err
    assert "rows of 1 texts are aligned beside" in result.err
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["method"] == "selfaug+replay+wise-ft"
    assert saved["method_options"] == {"replay_data": str(general), "replay_ratio": 0.5, "adapter_scale": 0}
    manifest = json.loads((run / "manifest.json").read_text())
    digest = hashlib.sha256(general.read_bytes()).hexdigest()
    assert manifest["data"]["replay_data"]["files"][0]["hash"] == f"sha256:{digest}"
    digest = hashlib.sha256(texts.read_bytes()).hexdigest()
    assert manifest["data"]["align_data"]["files"][0]["hash"] == f"sha256:{digest}"
    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    assert all(torch.count_nonzero(tensor) == 0 for name, tensor in adapter.items() if "lora_B" in name)


def test_full_needs_no_other_flag(cli: Cli, model: Path, data: Path, tmp_path: Path) -> None:
    result = cli(*words(model, data, tmp_path / "run", "--method", "full"))
    assert result.code == 0, result.err
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["use_peft"] is False


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--method", "kl-respons"], "Did you mean 'kl-response'?"),
        (["--method", "dft", "--method_options", "powr=1"], "Did you mean 'power'?"),
        (["--method", "replay"], "general data, and none is given"),
        (["--method", "wise-ft", "--use_peft", "false"], "full fine-tuning has none"),
        (["--method", "full", "--use_peft", "true"], "trains all weights"),
        (["--method", "selfaug+full"], "reference='base'"),
        (["--method", "dft+talr"], "decide the loss of response tokens"),
    ],
)
def test_what_a_method_lacks_is_said_before_anything_is_written(
    flags: list[str], said: str, cli: Cli, model: Path, data: Path, tmp_path: Path
) -> None:
    result = cli(*words(model, data, tmp_path / "run", *flags))
    assert result.code == 2
    assert result.out == ""
    assert said in result.err
    assert "\n\nhint: " in result.err
    assert not (tmp_path / "run").exists()
