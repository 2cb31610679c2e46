"""A folder's splits: found alike by all who read a run's data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from selfaug.data.folders import HELD_OUT, split_file
from selfaug.evaluation.data import task_data
from selfaug.provenance import files_of
from selfaug.shift.texts import data_of_run, run_data


def folder(where: Path, *names: str) -> str:
    for name in names:
        row = {"question": f"Who keeps {name}?", "documents": ["Ada keeps it."], "answer": "Ada"}
        (where / name).write_text(json.dumps(row) + "\n", encoding="utf-8")
    return str(where)


def test_the_first_split_that_is_there_is_taken(tmp_path: Path) -> None:
    name = folder(tmp_path, "train.jsonl", "held_out.jsonl", "dev.jsonl")
    assert split_file(name, HELD_OUT) == tmp_path / "held_out.jsonl"
    assert split_file(name, ("dev", *HELD_OUT)) == tmp_path / "dev.jsonl"
    assert split_file(name, ("other",)) is None
    assert split_file(str(tmp_path / "train.jsonl"), ("train",)) is None
    assert split_file("owner/name", ("train",)) is None
    (tmp_path / "test.parts").mkdir()
    assert split_file(name, HELD_OUT) == tmp_path / "held_out.jsonl", "a folder is no file of a split"


@pytest.mark.parametrize("stem", HELD_OUT)
def test_shift_and_evaluate_measure_the_same_file(tmp_path: Path, stem: str) -> None:
    config = {"dataset_name": folder(tmp_path, "train.jsonl", f"{stem}.jsonl")}
    measured = task_data([], config, {})[0]
    items, name, files = run_data(None, config, "error")
    assert name == measured.described["name"] == str(tmp_path / f"{stem}.jsonl")
    assert [item.question for item in items] == [item.question for item in measured.items]
    assert list(files) == [tmp_path / f"{stem}.jsonl"]


def test_shift_reads_the_training_file_where_nothing_else_is(tmp_path: Path) -> None:
    name = folder(tmp_path, "train.jsonl", "notes.jsonl")
    assert data_of_run({"dataset_name": name}) == (str(tmp_path / "train.jsonl"), "train")
    assert data_of_run({"dataset_name": "owner/name"}) == ("owner/name", "train")


def test_what_a_run_held_out_itself_is_cut_from_its_training_file(tmp_path: Path) -> None:
    name = folder(tmp_path, "train.jsonl", "test.jsonl", "notes.jsonl")
    rows = [{"question": f"Who keeps {i}?", "documents": [f"Ada keeps {i}."], "answer": "Ada"} for i in range(8)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = {"dataset_name": name, "held_out": 0.5}
    manifest = {"data": {"train": {"files": files_of([tmp_path / "train.jsonl"])}}}
    measured = task_data([], config, manifest)[0]
    items, _, _ = run_data(None, config, "error")
    assert data_of_run(config) == (str(tmp_path / "train.jsonl"), "train")
    assert 0 < len(items) < 8
    assert [item.question for item in items] == [item.question for item in measured.items]
