"""Does `selfaug prepare`, run as a user runs it, write what it says, and say what is wrong?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from selfaug.cli.config import read
from selfaug.data.read import read_rows
from selfaug.data.record import Record


def selfaug(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "selfaug.cli.main", "prepare", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        timeout=300,
        check=False,
    )


def row(i: int, **more: Any) -> dict[str, Any]:
    question, document = f"what is in text {i}?", {"text": f"word{i} is here"}
    return {"id": f"r{i}", "question": question, "documents": [document], "answer": f"word{i}"} | more


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), "utf-8")
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    # Two questions a document: 20 documents.
    rows = [
        row(i, documents=[{"text": f"passage {i // 2} holds word{i // 2 * 2} and word{i // 2 * 2 + 1}"}])
        for i in range(40)
    ]
    return write(tmp_path / "data.jsonl", rows)


def assert_mistake(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    # One error, the last thing said: before it stands at most what was being done.
    assert [line.startswith("error: ") for line in done.stderr.splitlines()].count(True) == 1, done.stderr
    assert "\n\nhint: " in done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr


def test_it_writes_a_split_by_document_and_a_report(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    done = selfaug(data, "--output_dir", out, "--held_out", 0.2, "--seed", 3)
    assert done.returncode == 0, done.stderr
    assert "train 32, held out 8 (of 20 groups)" in done.stdout
    assert "no leak" in done.stdout
    assert str(out) in done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["held_out.jsonl", "report.json", "train.jsonl"]
    assert list(out.parent.iterdir()) == [out]
    train, held_out = lines(out / "train.jsonl"), lines(out / "held_out.jsonl")
    assert sorted(r["id"] for r in train + held_out) == sorted(f"r{i}" for i in range(40))
    assert not {r["documents"][0]["text"] for r in train} & {r["documents"][0]["text"] for r in held_out}
    # What is written is canonical: it is read back as what was read.
    originals = {r.id: r for r in read_rows(data).items if isinstance(r, Record)}
    again = [
        r for name in ("train", "held_out") for r in read_rows(out / f"{name}.jsonl").items if isinstance(r, Record)
    ]
    assert {r.id: r for r in again} == originals
    report = json.loads((out / "report.json").read_text("utf-8"))
    assert (report["train"], report["held_out"], report["rows"], report["format"]) == (32, 8, 40, "canonical")
    assert report["leaks"]["shared_documents"]["count"] == 0
    assert report["settings"]["seed"] == 3
    assert report["files"][0]["path"] == str(data)
    second = selfaug(data, "--output_dir", tmp_path / "again", "--held_out", 0.2, "--seed", 3)
    assert second.returncode == 0
    for name in ("train.jsonl", "held_out.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()


def test_bad_rows_stop_or_are_counted_and_listed(data: Path, tmp_path: Path) -> None:
    bad = write(
        tmp_path / "bad.jsonl", [*(row(i) for i in range(9)), "{broken", row(9, answer=""), row(10, documents=[])]
    )
    out = tmp_path / "out"
    assert_mistake(selfaug(bad, "--output_dir", out), f"{bad}, line 10", "--on_bad_row skip")
    assert not out.exists()
    done = selfaug(bad, "--output_dir", out, "--on_bad_row", "skip", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads((out / "report.json").read_text("utf-8"))
    assert report["rows"] == 12
    assert report["bad_rows"]["count"] == 3
    for problem, place in zip(
        report["bad_rows"]["problems"],
        ("line 10", "line 11, field 'answer'", "line 12, field 'documents'"),
        strict=True,
    ):
        assert place in problem
    assert report["train"] + report["held_out"] == 9


def test_check_writes_nothing_and_tells_by_its_exit_code(data: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    done = selfaug(data, "--check")
    assert done.returncode == 0, done.stderr
    assert "40 examples in the format canonical" in done.stdout
    bad = write(tmp_path / "bad.jsonl", [row(0), row(1, question=3), row(2, answer=[])])
    done = selfaug(bad, "--check", "--output_dir", tmp_path / "out")
    assert_mistake(done, "2 of 3 rows are bad", "line 2, field 'question'")
    assert "line 3, field 'answer'" in done.stdout  # All are listed, not the first alone.
    assert selfaug(bad, "--check", "true", "--on_bad_row", "skip").returncode == 0
    assert sorted(tmp_path.iterdir()) == sorted([*before, bad])


def test_documents_come_from_a_corpus_and_none_is_on_both_sides(tmp_path: Path) -> None:
    corpus = write(
        tmp_path / "corpus.jsonl",
        [{"id": str(i), "contents": f'"T{i}"\nabout word{i} and thing{i % 7}'} for i in range(60)],
    )
    questions = [
        {"id": str(i), "question": f"which thing{i % 7} has word{i}?", "golden_answers": [f"word{i}"]}
        for i in range(30)
    ]
    data = write(tmp_path / "data.jsonl", questions)
    assert_mistake(selfaug(data, "--output_dir", tmp_path / "out"), "--corpus")
    out = tmp_path / "out"
    done = selfaug(data, "--output_dir", out, "--corpus", corpus, "--top_k", 1, "--distractors", 3, "--held_out", 0.2)
    assert done.returncode == 0, done.stderr
    assert "30 of 30 examples have an accepted answer in their documents" in done.stdout
    train, held_out = lines(out / "train.jsonl"), lines(out / "held_out.jsonl")
    assert (len(train), len(held_out)) == (24, 6)
    # The passages of the seven things are few: without the rule both sides would get the same distractors.
    assert not {d["text"] for r in train for d in r["documents"]} & {
        d["text"] for r in held_out for d in r["documents"]
    }
    for r in train + held_out:
        with_answer = [d for d in r["documents"] if r["answer"] in d["text"].split()]
        assert [d["id"] for d in with_answer] == [r["id"]]
        assert with_answer[0]["score"] == max(d["score"] for d in r["documents"])
    report = json.loads((out / "report.json").read_text("utf-8"))
    assert report["retrieval"] == {"records_with_answer_in_documents": 30, "left_out_without_documents": []}
    write(data, [*questions, {"id": "x", "question": "unheard of", "golden_answers": ["a"]}])
    assert_mistake(selfaug(data, "--output_dir", tmp_path / "o2", "--corpus", corpus), "unheard of", "larger corpus")
    done = selfaug(data, "--output_dir", tmp_path / "o2", "--corpus", corpus, "--on_bad_row", "skip")
    assert done.returncode == 0, done.stderr
    assert "1 records left out" in done.stdout


def test_a_file_of_settings_is_overridden_by_flags(data: Path, tmp_path: Path) -> None:
    config = tmp_path / "prepare.yaml"
    config.write_text(f"input: {data}\nheld_out: 0.5\nseed: 4\njson: true\n", "utf-8")
    done = selfaug("--config", config, "--output_dir", tmp_path / "out", "--held_out", 0.25)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["held_out"], report["settings"]["seed"]) == (10, 4)
    config.write_text("held_outt: 0.5\n", "utf-8")
    assert_mistake(selfaug(data, "--config", config, "--check"), "held_outt", "Did you mean 'held_out'")
    config.write_text("seed: many\n", "utf-8")
    assert_mistake(selfaug(data, "--config", config, "--check"), "seed", "many")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["nothing.jsonl", "--check"], ["nothing.jsonl: no such file", "Did you mean 'nothings.jsonl'"]),
        (["nothings.jsonl", "--check"], ["is empty"]),
        ([], ["input is not given", "selfaug prepare INPUT"]),
        (["data.jsonl"], ["no output_dir"]),
        (["data.jsonl", "--output_dir", "data.jsonl"], ["is a file"]),
        (["data.jsonl", "--output_dir", "."], ["holds other files", "data.jsonl"]),
        (["data.jsonl", "--output_dir", "out", "--held_out", "1.5"], ["held_out=1.5"]),
        (["data.jsonl", "--output_dir", "out", "--held_out", "nan"], ["held_out=nan"]),
        (["data.jsonl", "--output_dir", "out", "--held_out", "some"], ["--held_out", "some"]),
        (["data.jsonl", "--output_dir", "out", "--helt_out", "0.1"], ["--helt_out", "Did you mean '--held_out'"]),
        (["data.jsonl", "--output_dir", "out", "--format", "canonicle"], ["canonicle", "Did you mean 'canonical'"]),
        (["data.jsonl", "--output_dir", "out", "--on_bad_row", "ignore"], ["--on_bad_row", "ignore"]),
        (["data.jsonl", "--output_dir", "out", "--distractors", "2"], ["no corpus"]),
        (["data.jsonl", "--output_dir", "out", "--corpus", "data.jsonl"], ["data.jsonl, line 1, field 'text'"]),
        (["data.jsonl", "--output_dir", "out", "--corpus", "gone.jsonl"], ["gone.jsonl: no such file"]),
        (["data.jsonl", "--output_dir", "out", "--max_length", "100"], ["max_length=100"]),
        (["data.jsonl", "--output_dir", "out", "--model_name_or_path", "./gone"], ["./gone", "does not exist"]),
        (["trl.jsonl", "--output_dir", "out", "--corpus", "corpus.txt"], ["TRL"]),
        (["one.jsonl", "--output_dir", "out"], ["cannot be split by document", "--held_out 0"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_error_with_a_hint_and_leaves_nothing(
    data: Path, arguments: list[str], parts: list[str]
) -> None:
    folder = data.parent
    write(folder / "nothings.jsonl", [])
    write(folder / "corpus.txt", ["some words"])
    write(folder / "one.jsonl", [row(0)])
    write(folder / "trl.jsonl", [{"prompt": "a", "completion": "b"}])
    before = sorted(folder.rglob("*"))
    done = selfaug(*arguments, cwd=folder)
    assert_mistake(done, *parts)
    assert done.stdout == ""
    assert sorted(folder.rglob("*")) == before


def test_an_earlier_result_is_replaced_only_when_asked(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert selfaug(data, "--output_dir", out).returncode == 0  # An empty folder is free.
    first = (out / "report.json").read_text("utf-8")
    assert_mistake(selfaug(data, "--output_dir", out, "--seed", 1), "already holds", "--overwrite_output_dir")
    assert (out / "report.json").read_text("utf-8") == first
    assert selfaug(data, "--output_dir", out, "--held_out", 0, "--overwrite_output_dir").returncode == 0
    assert sorted(path.name for path in out.iterdir()) == ["report.json", "train.jsonl"]
    assert len(lines(out / "train.jsonl")) == 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "out"]


def test_rows_of_trl_pass_through_and_are_split_by_prompt(tmp_path: Path) -> None:
    rows = [{"prompt": f"say {i // 2}", "completion": str(i)} for i in range(20)]
    done = selfaug(write(tmp_path / "data.jsonl", rows), "--output_dir", tmp_path / "out", "--held_out", 0.2)
    assert done.returncode == 0, done.stderr
    train, held_out = lines(tmp_path / "out" / "train.jsonl"), lines(tmp_path / "out" / "held_out.jsonl")
    assert len(held_out) == 4
    assert sorted(train + held_out, key=str) == sorted(rows, key=str)
    assert not {r["prompt"] for r in train} & {r["prompt"] for r in held_out}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_a_run_stopped_while_it_writes_leaves_no_half_written_folder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    from selfaug.cli import prepare

    write_rows, written = prepare._write_rows, []

    def stopped(path: Path, part: Any) -> None:
        if path.name == "held_out.jsonl":
            raise stop
        write_rows(path, part)
        written.append(path)

    monkeypatch.setattr(prepare, "_write_rows", stopped)
    out = tmp_path / "out"
    words = [str(data), "--output_dir", str(out)]
    with pytest.raises(stop):
        prepare.run(read(prepare.COMMAND, words))
    assert [path.name for path in written] == ["train.jsonl"]  # It was stopped in the middle.
    assert list(tmp_path.iterdir()) == [data]
    monkeypatch.undo()
    assert prepare.run(read(prepare.COMMAND, words)) == 0
    before = (out / "train.jsonl").read_bytes()
    monkeypatch.setattr(prepare, "_write_rows", stopped)
    with pytest.raises(stop):
        prepare.run(read(prepare.COMMAND, [*words, "--seed", "9", "--overwrite_output_dir"]))
    assert (out / "train.jsonl").read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [data, out]


def test_an_output_folder_that_cannot_be_written_is_said(data: Path) -> None:
    done = selfaug(data, "--output_dir", data / "below" / "a file")
    assert_mistake(done, "output_dir", "data.jsonl', which is a file")


@pytest.mark.nightly
@pytest.mark.shared
@pytest.mark.slow
def test_the_length_report_counts_the_models_tokens(shared: Path, stories260k: Path, tmp_path: Path) -> None:
    records = [r for r in read_rows(shared / "data" / "mctest" / "mc160.dev.tsv").items if isinstance(r, Record)][:24]
    source = write(tmp_path / "stories.jsonl", [r.to_row() for r in records])
    done = selfaug(
        source, "--output_dir", tmp_path / "out", "--model_name_or_path", stories260k, "--max_length", 400, "--json"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    lengths = report["lengths"]
    assert lengths["train"]["rows"] + lengths["held_out"]["rows"] == 24
    for part in lengths.values():
        assert part["kept"] == part["rows"]
        assert part["tokens_per_row"]["total"]["max"] <= 400 < part["tokens_per_row"]["whole"]["max"]
        assert part["shortened"] > 0
    text = selfaug(source, "--check", "--model_name_or_path", stories260k, "--max_length", 400)
    assert text.returncode == 0, text.stderr
    assert "tokens, response: min" in text.stdout
    assert "rows have a shortened document" in text.stdout
