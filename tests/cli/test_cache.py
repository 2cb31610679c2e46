from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from .conftest import TRAIN, Cli, Result, records, write_rows


def words(model: Path, data: Path, cache: Path) -> list[str]:
    given = ["--model_name_or_path", model, "--dataset_name", data, "--reference_cache", cache, *TRAIN]
    return [str(word) for word in given]


@pytest.fixture(scope="module")
def cache(cli: Cli, model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cached") / "cache"
    result = cli("cache", *words(model, data, folder))
    assert result.code == 0, result.err
    assert result.out == f"{folder}\n"
    assert "12 sequences, 32 numbers each in float32" in result.err
    assert result.err.index("12 sequences") < result.err.index("1 shards written")
    return folder


def test_a_training_reads_the_cache_and_has_no_reference_pass(
    cli: Cli, model: Path, data: Path, cache: Path, trained: tuple[Path, Result], tmp_path: Path
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    result = cli("train", *words(model, data, cache), "--max_steps", 6, "--output_dir", tmp_path / "run")
    assert result.code == 0, result.err
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == before

    def log(run: Path) -> list[dict[str, float]]:
        return [entry for line in (run / "log.jsonl").read_text().splitlines() if "loss" in (entry := json.loads(line))]

    ours, theirs = log(tmp_path / "run"), log(trained[0])
    assert [entry["reference_tokens"] for entry in ours] == [0] * 6
    assert min(entry["reference_tokens"] for entry in theirs) > 0
    assert [entry["nll"] for entry in ours] == pytest.approx([entry["nll"] for entry in theirs], rel=1e-5)
    assert ours[-1]["alignment"] == pytest.approx(theirs[-1]["alignment"], rel=1e-3)


def test_writing_again_writes_nothing(cli: Cli, model: Path, data: Path, cache: Path) -> None:
    result = cli("cache", *words(model, data, cache))
    assert result.code == 0, result.err
    assert "nothing to write" in result.err


def test_a_changed_row_is_refused_before_the_run_folder_is_touched(
    cli: Cli, model: Path, cache: Path, tmp_path: Path
) -> None:
    rows = records()
    rows[4]["question"] += " Say it again."
    other = write_rows(tmp_path / "other.jsonl", rows)
    result = cli("train", *words(model, other, cache), "--max_steps", 1, "--output_dir", tmp_path / "run")
    assert result.code == 2
    assert "other data rows: 1 of 12" in result.err
    assert "row 5 of the train data set" in result.err
    assert not (tmp_path / "run").exists()


def test_what_makes_no_sense_is_said_at_once(cli: Cli, model: Path, data: Path, cache: Path) -> None:
    result = cli("cache", "--model_name_or_path", model, "--dataset_name", data)
    assert result.code == 2
    assert "--reference_cache DIR" in result.err
    result = cli("cache", *words(model, data, cache), "--alpha", 0)
    assert result.code == 2
    assert "aligns nothing" in result.err


def test_a_dry_run_says_what_a_training_takes_and_writes_nothing(
    cli: Cli, model: Path, data: Path, cache: Path, tmp_path: Path
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    given = [*words(model, data, cache), "--max_steps", 40, "--output_dir", tmp_path / "run"]
    result = cli("train", "--dry_run", *given)
    assert result.code == 0, result.err
    assert not (tmp_path / "run").exists()
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == before
    said = result.out
    assert re.search(r"rows +12 \(12 sequences, ", said)
    assert re.search(r"steps +40 ", said)
    assert "reference passes 0 on each device: hidden states come from the cache" in said
    for part in ("weights", "adapter", "optimiser", "activations", "logits of the loss", "together"):
        assert re.search(rf"^  {part} +[\d.]+ MiB", said, re.MULTILINE), part
    assert re.search(r"the reference cache [\d.]+ MiB", said)
    assert re.search(r"time: [\d.]+ s a step, so \d+ min \d\d s for 40 steps", said)
    refused = cli("cache", "--dry_run", *words(model, data, cache))
    assert (refused.code, "trains nothing" in refused.err) == (2, True)
