"""What a mixture trains on: of each folder its training split, and what its evaluation set shares with it is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfaug.cli.data import Sources, leak_lines, open_sources
from selfaug.cli.parsing import build, parse
from selfaug.common.errors import ConfigError, DataError
from selfaug.data.record import Conversation, Record


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
    sources = open_sources(settings)
    prompts = [row["prompt"] for row in sources.train if isinstance(row, dict)]
    assert prompts == ["say train-00000-of-00002", "say train-00001-of-00002"]
    assert "Not read: validation (DEV.jsonl)" in capsys.readouterr().err
    leaks = "\n".join(leak_lines(sources))
    assert "leak: 1 distinct question (in 1 row of 2) are also asked in the training data" in leaks
    (tmp_path / "hub" / "notes.jsonl").write_text("{}\n", "utf-8")
    with pytest.raises(DataError, match=r"No split: notes\.jsonl"):
        open_sources(settings)


def _read(folder: Path, datasets: list[dict[str, Any]], **settings: Any) -> Sources:
    config = folder / "mixture.yaml"
    config.write_text(yaml.safe_dump({"datasets": datasets, **settings}))
    words = ["--config", str(config), "--model_name_or_path", "none", "--output_dir", str(folder / "run")]
    return open_sources(build(parse([*words, "--use_cpu", "true", "--max_length", "64"]).values))


def test_a_mixture_reads_the_split_of_each_folder_by_any_format_and_says_what_its_halves_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, chat = tmp_path / "tables", tmp_path / "chat.jsonl"
    folder.mkdir()
    head = "question,documents,answer\n"
    for name, first in (("train.0", 0), ("train.1", 2), ("test", 4)):
        rows = "".join(f"Who is {n}?,A text,{n}\n" for n in range(first, first + 2))  # one text: each half has it
        (folder / f"{name}.csv").write_text(head + rows, "utf-8")
    message = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
    chat.write_text(json.dumps({"messages": message}) + "\n", "utf-8")
    entries = [{"path": str(folder)}, {"path": str(chat)}]
    sources = _read(tmp_path, entries, test_split_size=2, eval_strategy="epoch")
    assert sources.evaluation is not None
    items = [*sources.train, *sources.evaluation]
    assert {item.question for item in items if isinstance(item, Record)} == {f"Who is {n}?" for n in range(4)}
    assert sum(isinstance(item, Conversation) for item in items) == 1
    assert len(items) == 5
    files = [path.name for reading in sources.train.readings for path in reading.files]
    assert files == ["train.0.csv", "train.1.csv", "chat.jsonl"]
    assert "Not read: test (test.csv)" in capsys.readouterr().err
    assert "leak: 1 distinct document" in "\n".join(leak_lines(sources))


def test_an_entry_of_a_mixture_reads_what_it_names_and_no_more(tmp_path: Path) -> None:
    inside = tmp_path / "data" / "a"
    inside.mkdir(parents=True)
    for name in ("train", "test", "other"):
        rows = "".join(json.dumps({"prompt": f"{name} {n}", "completion": " it"}) + "\n" for n in range(10))
        ((inside if name != "other" else inside.parent) / f"{name}.jsonl").write_text(rows, "utf-8")

    def prompts(**entry: Any) -> list[str]:
        return [row["prompt"] for row in _read(tmp_path, [entry]).train if isinstance(row, dict)]

    files = {"train": [str(inside / "train.jsonl")], "test": str(inside / "test.jsonl")}
    assert prompts(path="json", data_files=files) == [f"train {n}" for n in range(10)]
    assert prompts(path="json", data_files=files, split="test[:20%]") == ["test 0", "test 1"]
    assert prompts(path=str(inside.parent), data_dir="a") == [f"train {n}" for n in range(10)]
    with pytest.raises(ConfigError, match="no file for the split 'dev'"):
        prompts(path="json", data_files=files, split="dev")
    with pytest.raises(ConfigError, match="is no part of one split"):
        prompts(path=str(inside), split="train[:10%]+test[:10%]")
