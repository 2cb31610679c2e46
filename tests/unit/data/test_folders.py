"""A folder's splits: by the Hub's rules, and found alike by all who read a run's data."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfaug.common.errors import DataError
from selfaug.common.fingerprint import files_of
from selfaug.data.files import data_files, find_files, has_split
from selfaug.data.folders import HELD_OUT, choose, evaluation_splits
from selfaug.data.read import read_rows
from selfaug.data.record import Record
from selfaug.evaluation.data import task_data
from selfaug.shift.texts import data_of_run, run_data
from tests.oracles.hub_splits import KEYWORDS, splits_of_name

_PACK = {".gz": gzip.compress, ".bz2": bz2.compress}


def folder(where: Path, *names: str) -> str:
    for name in names:
        row = {"id": name, "question": f"Who keeps {name}?", "documents": ["Ada keeps it."], "answer": "Ada"}
        path = where / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = (json.dumps(row) + "\n").encode()
        path.write_bytes(_PACK.get(path.suffix, lambda content: content)(content))
    return str(where)


def read(where: Path, split: Any = "train") -> list[str]:
    """The names of the files that were read, by the ids of their rows."""
    return sorted(str(item.id) for item in read_rows(where, split=split).items if isinstance(item, Record))


LAYOUTS: list[tuple[list[str], list[str], list[str]]] = [
    (["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/test-00000-of-00001.jsonl"],
     ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"], ["data/test-00000-of-00001.jsonl"]),
    (["train.0.jsonl", "train.1.jsonl", "test.jsonl"], ["train.0.jsonl", "train.1.jsonl"], ["test.jsonl"]),
    (["train_0.jsonl", "train_1.jsonl"], ["train_0.jsonl", "train_1.jsonl"], []),
    (["train-a.jsonl.gz", "TRAIN-b.JSONL", "dev-a.jsonl"], ["TRAIN-b.JSONL", "train-a.jsonl.gz"], ["dev-a.jsonl"]),
    (["Train/a.jsonl", "Train/deep/b.jsonl", "Test/a.jsonl"], ["Train/a.jsonl", "Train/deep/b.jsonl"],
     ["Test/a.jsonl"]),
    (["en/train/a.jsonl", "de/train/a.jsonl", "en/validation/a.jsonl"], ["de/train/a.jsonl", "en/train/a.jsonl"],
     ["en/validation/a.jsonl"]),
    (["split=train/0.jsonl", "split=test/0.jsonl"], ["split=train/0.jsonl"], ["split=test/0.jsonl"]),
    (["training.jsonl", "val.jsonl", "held-out.jsonl"], ["training.jsonl"], ["held-out.jsonl"]),
    (["train.jsonl", "valid-0.jsonl", "eval.jsonl"], ["train.jsonl"], ["eval.jsonl"]),
    (["mc160.train.jsonl", "mc500.train.jsonl", "mc160.dev.jsonl"], ["mc160.train.jsonl", "mc500.train.jsonl"],
     ["mc160.dev.jsonl"]),
    (["train_sft-00000-of-00002.jsonl", "train_sft-00001-of-00002.jsonl", "test_sft-00000-of-00001.jsonl"],
     ["train_sft-00000-of-00002.jsonl", "train_sft-00001-of-00002.jsonl"], ["test_sft-00000-of-00001.jsonl"]),
    (["train-00000-of-00001.jsonl", "unsupervised-00000-of-00001.jsonl"], ["train-00000-of-00001.jsonl"], []),
    (["train-1-of-2.jsonl", "train-2-of-2.jsonl"], ["train-1-of-2.jsonl", "train-2-of-2.jsonl"], []),
    (["training_manual.jsonl"], ["training_manual.jsonl"], []),
]  # fmt: skip


@pytest.mark.parametrize(("names", "train", "held_out"), LAYOUTS)
def test_all_files_of_a_split_are_read_and_no_others(
    tmp_path: Path, names: list[str], train: list[str], held_out: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder(tmp_path, *names)
    assert read(tmp_path) == train
    said = capsys.readouterr().err
    assert all(name in said for name in names), "what is read and what is not is said"
    assert [str(path.relative_to(tmp_path)) for path in data_files(tmp_path)] == train
    assert has_split(tmp_path, HELD_OUT) == bool(held_out)
    if held_out:
        assert read(tmp_path, HELD_OUT) == held_out
        assert [item.id for item in task_data([str(tmp_path)], {}, {})[0].items] == held_out
    else:
        with pytest.raises(DataError, match="no file is of the split test or held_out or validation; there is train"):
            read(tmp_path, HELD_OUT)


@pytest.mark.parametrize(
    "names",
    [["a.jsonl", "b.jsonl"], ["contest.jsonl", "latest.jsonl", "devices.jsonl"], ["part-00000-of-00001.jsonl"],
     ["deep/a.jsonl", "deep/er/b.jsonl"], ["trainData.jsonl", "testData.jsonl"]],
)  # fmt: skip
def test_a_folder_whose_files_name_no_split_is_one_data_set(
    tmp_path: Path, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder(tmp_path, *names)
    for split in ("train", "test", HELD_OUT):
        assert read(tmp_path, split) == sorted(names)
        said = capsys.readouterr().err
        assert len(names) == 1 or all(name in said for name in [*names, "one data set"])


def test_folders_inside_are_left_alone_and_named_where_no_file_names_a_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder(tmp_path, "a.jsonl", "old/b.jsonl")
    assert read(tmp_path) == ["a.jsonl"]
    assert "folders inside are not read: old" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        (["train.jsonl", "contest.jsonl", "old/more.jsonl"], "train", r"No split: contest\.jsonl, old/more\.jsonl\. "),
        (["training_manual.jsonl", "faq.jsonl"], "train", r"No split: faq\.jsonl\. Splits: train \(training_manual"),
        (["test.jsonl"], "train", r"no file is of the split train; there is test \(test\.jsonl\)"),
        (["train/dev.jsonl"], "train", r"train/dev\.jsonl holds words of 2 splits: train and validation"),
        (["train-00001-of-00002.jsonl"], "train", "train-00000-of-00002 is missing"),
        (["train-00000-of-00003-a1.jsonl", "train-00002-of-00003-b2.jsonl"], "train", "00001-of-00003 is missing"),
        (["part-0-of-2.jsonl"], "train", "part-1-of-2 is missing"),
        (["train_sft-00000-of-00001.jsonl", "train_gen-00000-of-00001.jsonl"], "train",
         "'train' could be each of train_gen, train_sft"),
        (["train-0.jsonl", "train-1.jsonl.zst"], "train", r"train-1\.jsonl\.zst belongs to the split train"),
        (["train/a.jsonl", "train/b.arrow"], "train", r"train/b\.arrow belongs"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_refused_by_name(tmp_path: Path, names: list[str], split: str, message: str) -> None:
    folder(tmp_path, *names)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, split)
    assert caught.value.hint


def test_a_missing_shard_of_another_split_is_no_matter(tmp_path: Path) -> None:
    folder(tmp_path, "train-00000-of-00001.jsonl", "test-00001-of-00002.jsonl")
    assert read(tmp_path) == ["train-00000-of-00001.jsonl"]


def test_a_shard_given_itself_is_read_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(tmp_path, "train-00000-of-00002.jsonl")
    assert len(read(tmp_path / "train-00000-of-00002.jsonl")) == 1
    assert "one of several shards" in capsys.readouterr().err


def test_files_that_differ_in_their_suffix_alone_are_said(tmp_path: Path) -> None:
    folder(tmp_path, "train.jsonl", "train.jsonl.gz", "test.jsonl")
    assert "Careful: train.jsonl, train.jsonl.gz differ only" in find_files(tmp_path).note
    assert "Careful" not in find_files(tmp_path, "test").note


def test_a_split_of_any_name_may_be_asked_for(tmp_path: Path) -> None:
    folder(tmp_path, "train_sft-00000-of-00001.jsonl", "train_gen-00000-of-00001.jsonl")
    assert read(tmp_path, "train_gen") == ["train_gen-00000-of-00001.jsonl"]
    folder(tmp_path / "files", "round_1.jsonl", "round_2.jsonl", "ground.jsonl", "train.jsonl")
    with pytest.raises(DataError, match=r"No split: ground\.jsonl"):
        read(tmp_path / "files", "round")
    (tmp_path / "files" / "ground.jsonl").unlink()
    assert read(tmp_path / "files", "round") == ["round_1.jsonl", "round_2.jsonl"]


def test_what_is_no_data_is_left_alone(tmp_path: Path) -> None:
    folder(tmp_path, "train.jsonl", "test.jsonl", ".cache/train.jsonl", "run/log.jsonl")
    (tmp_path / "report.json").write_text('{\n  "selfaug": "1", "rows": 2}', "utf-8")
    for name in ("dataset_infos.json", "run/manifest.json", "run/config.yaml", "README.md", "LICENSE"):
        (tmp_path / name).write_text("{}", "utf-8")
    assert read(tmp_path) == ["train.jsonl"]
    # A report of somebody else's is data like any other file.
    (tmp_path / "report.json").write_text('{"question": "?"}', "utf-8")
    with pytest.raises(DataError, match=r"No split: report\.json"):
        read(tmp_path)


word = st.sampled_from([*KEYWORDS, *KEYWORDS, "contest", "latest", "devout", "data", "squad", "part", "évals", "v"])
cased = st.tuples(word, st.sampled_from([str.lower, str.upper, str.title])).map(lambda t: t[1](t[0]))
part = st.lists(cased, min_size=1, max_size=2).flatmap(
    lambda words: st.sampled_from(["-", "_", ".", " ", "-0", "1"]).map(lambda sign: sign.join(words))
)
suffix = st.sampled_from([".jsonl", ".jsonl.gz", ".JSONL", ".json", "-0003.jsonl.bz2", "7.ndjson"])
name = st.tuples(st.lists(part, max_size=1), part, suffix).map(lambda t: "/".join([*t[0], t[1] + t[2]]))


def listed(where: str, split: str) -> list[str]:
    return sorted(path.relative_to(where).as_posix() for path in data_files(Path(where), split))


@settings(max_examples=150, deadline=None)
@given(st.lists(name, min_size=1, max_size=5, unique_by=str.lower), st.sampled_from(["train", "test", "validation"]))
def test_random_layouts_are_read_as_the_hub_says(names: list[str], split: str) -> None:
    told = {name: splits_of_name(name) for name in names}
    with tempfile.TemporaryDirectory() as where:
        for name in names:
            (Path(where) / name).parent.mkdir(exist_ok=True)
            (Path(where) / name).touch()
        if any(len(found) > 1 for found in told.values()):
            expected = "holds words of"
        elif not any(told.values()):
            top = [name for name in names if "/" not in name]
            assert listed(where, split) == sorted(top or names)
            return
        elif not all(told.values()):
            expected = "some files name a split and others do not"
        elif not any(split in found for found in told.values()):
            expected = "no file is of the split"
        else:
            assert listed(where, split) == sorted(name for name in names if split in told[name])
            return
        with pytest.raises(DataError, match=expected) as caught:
            listed(where, split)
        if expected.startswith("some"):
            assert all(name in str(caught.value) for name in names)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(list(KEYWORDS)), st.sampled_from(["{}", "a_{}", "{}_1", "x.{}-2", "{} b"])),
        min_size=1, max_size=4, unique=True,
    ),
    st.booleans(),
)  # fmt: skip
def test_the_hubs_own_library_reads_the_same_files(words: list[tuple[str, str]], inside: bool) -> None:
    from datasets.data_files import get_data_patterns, resolve_pattern

    stems = [pattern.format(word) for word, pattern in words]
    with tempfile.TemporaryDirectory() as where:
        for stem in stems:
            path = Path(where) / (f"{stem}/rows.jsonl" if inside else f"{stem}.jsonl")
            path.parent.mkdir(exist_ok=True)
            path.touch()
        patterns = get_data_patterns(where)
        assert patterns
        for split, found in patterns.items():
            theirs = set()
            for pattern in found:
                with contextlib.suppress(FileNotFoundError):  # a pattern that no file matches
                    theirs |= {Path(file).relative_to(where).as_posix() for file in resolve_pattern(pattern, where)}
            assert listed(where, str(split)) == sorted(theirs)


def test_a_name_is_chosen_among_the_splits_of_a_table() -> None:
    assert choose(["train", "train_sft", "dev"], ("train",)) == "train"
    assert choose(["train", "dev"], HELD_OUT) == "dev"
    assert choose(["Training", "x"], ("train",)) == "Training"
    assert choose(["train_sft", "test_sft"], ("train",)) == "train_sft"
    assert choose(["train_test_overlap"], ("train",)) is None
    assert choose(["latest", "contest"], HELD_OUT) is None
    with pytest.raises(DataError, match="could be each of dev, val"):
        choose(["val", "dev"], ("validation",))


def test_saved_data_sets_follow_the_same_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from datasets import Dataset, DatasetDict

    def table(name: str) -> Dataset:
        return Dataset.from_list([{"id": name, "question": "q", "documents": ["d"], "answer": "a"}])

    tables = {name: table(name) for name in ("train", "dev", "unsupervised")}
    DatasetDict(tables).save_to_disk(tmp_path / "saved")
    assert read(tmp_path / "saved") == ["train"]
    assert "of the splits train, dev, unsupervised, train is read" in capsys.readouterr().err
    assert has_split(tmp_path / "saved", HELD_OUT)
    assert read(tmp_path / "saved", evaluation_splits(None)) == ["dev"]
    assert read(tmp_path / "saved", "unsupervised") == ["unsupervised"]
    with pytest.raises(DataError, match="no split test; there is train, dev, unsupervised"):
        read(tmp_path / "saved", "test")
    table("alone").save_to_disk(tmp_path / "table")
    assert read(tmp_path / "table", "test") == ["alone"]
    # Tables that were saved one by one are not taken for rows.
    for name in ("train", "test"):
        table(name).save_to_disk(tmp_path / "apart" / name)
    with pytest.raises(DataError, match="no data file"):
        read(tmp_path / "apart")


def test_a_hub_data_set_is_asked_for_its_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(name: str, split: str) -> datasets.Dataset:
        asked.append(split)
        return datasets.Dataset.from_list([{"id": split, "question": "q", "documents": ["d"], "answer": "a"}])

    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, config: ["train", "validation"])
    monkeypatch.setattr(datasets, "load_dataset", load)
    name: Any = "owner/name"
    assert [read(name), read(name, HELD_OUT), read(name, "train[:5]")] == [["train"], ["validation"], ["train[:5]"]]
    assert asked == ["train", "validation", "train[:5]"]
    with pytest.raises(DataError, match="no split test; there is train, validation"):
        read(name, "test")


@pytest.mark.parametrize("stem", ["test", "held_out", "validation", "dev", "eval", "val-0"])
def test_shift_and_evaluate_measure_the_same_file(tmp_path: Path, stem: str) -> None:
    config = {"dataset_name": folder(tmp_path, "train.jsonl", f"{stem}.jsonl")}
    measured = task_data([], config, {})[0]
    items, name, files = run_data(None, config, "error")
    assert name == measured.described["name"] == str(tmp_path / f"{stem}.jsonl")
    assert [item.question for item in items] == [item.question for item in measured.items]
    assert list(files) == [tmp_path / f"{stem}.jsonl"]


def test_shift_reads_the_training_file_where_nothing_else_is(tmp_path: Path) -> None:
    name = folder(tmp_path, "train.jsonl")
    items, read_from, _ = run_data(None, {"dataset_name": name}, "error")
    assert read_from == str(tmp_path / "train.jsonl")
    assert len(items) == 1
    assert data_of_run({"dataset_name": "owner/name"}) == ("owner/name", (*HELD_OUT, "train"))


def test_what_a_run_held_out_itself_is_cut_from_its_training_file(tmp_path: Path) -> None:
    name = folder(tmp_path, "train.jsonl", "test.jsonl")
    rows = [{"question": f"Who keeps {i}?", "documents": [f"Ada keeps {i}."], "answer": "Ada"} for i in range(8)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = {"dataset_name": name, "held_out": 0.5}
    manifest = {"data": {"train": {"files": files_of([tmp_path / "train.jsonl"])}}}
    measured = task_data([], config, manifest)[0]
    items, _, _ = run_data(None, config, "error")
    assert data_of_run(config) == (name, ("train",))
    assert 0 < len(items) < 8
    assert [item.question for item in items] == [item.question for item in measured.items]
