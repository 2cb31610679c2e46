"""What a mixture trains on: of each folder its training split, and what its evaluation set shares with it is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from selfaug.cli.data import read_sources
from selfaug.cli.parsing import build, parse
from selfaug.errors import DataError


def test_a_mixture_reads_all_training_shards_of_a_folder_and_no_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hub").mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "DEV"):
        row = {"prompt": f"say {name}", "completion": " it"}
        (tmp_path / "hub" / f"{name}.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    test = tmp_path / "other.jsonl"
    rows = [{"prompt": "say train-00001-of-00002", "completion": " no"}, {"prompt": "new", "completion": " it"}]
    test.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"datasets": [{"path": str(tmp_path / "hub")}], "eval_dataset": str(test)}))
    words = ["--config", str(config), "--model_name_or_path", "none", "--output_dir", str(tmp_path / "run")]
    settings = build(parse([*words, "--use_cpu", "true", "--max_length", "64"]).values)
    sources = read_sources(settings)
    assert sources.train.table is not None
    prompts = [row["prompt"] for row in sources.train.table]
    assert prompts == ["say train-00000-of-00002", "say train-00001-of-00002"]
    err = capsys.readouterr().err
    assert "Not read: validation (DEV.jsonl)" in err
    assert "leak: 1 distinct question (in 1 row of 2) are also asked in the training data" in err
    (tmp_path / "hub" / "notes.jsonl").write_text("{}\n", "utf-8")
    with pytest.raises(DataError, match=r"No split: notes\.jsonl"):
        read_sources(settings)
