"""Is what cannot be sharded refused by `selfaug train` before any process is started?"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.distributed.launching import configuration

from .conftest import Cli
from .test_bad_input import assert_refused


@pytest.mark.parametrize(
    ("kind", "words", "says"),
    [
        ("fsdp2", ["--load_in_8bit", "true"], ("FSDP2 cannot split", "load_in_4bit")),
        ("fsdp2", ["--method", "pissa", "--reference", "initial", "--dry_run"], ("pretrained weights apart", "DDP")),
        ("zero2", ["--method", "l2", "--method_options", '{"update_weight": 0.5}'], ("penalises", "DDP")),
    ],
)
def test_refused_before_processes_start(
    kind: str, words: list[str], says: tuple[str, ...], cli: Cli, model: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "accelerate.yaml").write_text(yaml.safe_dump(configuration(kind)))
    chosen = ["--model_name_or_path", model, "--dataset_name", data, "--output_dir", tmp_path / "run"]
    result = cli("train", *chosen, "--accelerate_config", tmp_path / "accelerate.yaml", *words, cwd=tmp_path)
    assert_refused(result, *says)
    assert "starting" not in result.err
    assert not (tmp_path / "run").exists()
