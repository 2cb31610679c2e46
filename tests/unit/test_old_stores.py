"""Is what earlier releases kept still found, and what is torn or of something else made anew and never misread?"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from selfaug.before.scores import BaseScores
from selfaug.common.store import Lines, Store, keep_tensors, kept_tensors, key_of
from selfaug.evaluation.judge import Judge
from selfaug.generation.requests import Reply
from selfaug.generation.store import Store as Replies

MADE_BY = {"base": "abc", "dtype": "torch.float32"}


def test_tensors_of_an_earlier_release_are_found_by_what_made_them(tmp_path: Path) -> None:
    path = tmp_path / "fisher.safetensors"
    tensors = {"layer.0": torch.rand(3, 2), "layer.1": torch.rand(2)}
    save_file(tensors, path, metadata={"made_by": json.dumps(MADE_BY)})
    kept = kept_tensors(path, MADE_BY)
    assert kept is not None
    found, notes = kept
    assert notes == {}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert kept_tensors(path, {**MADE_BY, "base": "other"}) is None
    keep_tensors(path, tensors, MADE_BY, {"more": "x"})
    kept = kept_tensors(path, MADE_BY)
    assert kept is not None
    assert kept[1] == {"more": "x"}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("length", [0, 5, 40, -1])
def test_torn_tensors_are_made_anew(tmp_path: Path, length: int, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "adapter_start.safetensors"
    assert kept_tensors(path, MADE_BY) is None
    keep_tensors(path, {"A.0": torch.rand(3, 2)}, MADE_BY)
    path.write_bytes(path.read_bytes()[:length])
    with caplog.at_level(logging.INFO, "selfaug.common.store"):
        assert kept_tensors(path, MADE_BY) is None
    assert "damaged" in caplog.text
    save_file({"A.0": torch.rand(1)}, path)  # whole, and nothing says what made it
    assert kept_tensors(path, MADE_BY) is None


def test_scores_of_an_earlier_release_are_found_and_torn_ones_are_none(tmp_path: Path) -> None:
    path = tmp_path / "base_scores.safetensors"
    scores = BaseScores(MADE_BY)
    scores.add([1, 2, 3], torch.tensor([float("nan"), 0.5, 0.25]))
    scores.save(path)
    whole = path.read_bytes()
    # As it was written before: the same tensors, and the keys beside what made them.
    kept = kept_tensors(path, MADE_BY)
    assert kept is not None
    save_file(kept[0], path, metadata={"made_by": json.dumps(MADE_BY), "keys": kept[1]["keys"]})
    assert BaseScores.load(path, MADE_BY).of([1, 2, 3], torch.tensor([1, 2])).tolist() == [0.5, 0.25]
    path.write_bytes(whole[:-1])
    assert len(BaseScores.load(path, MADE_BY)) == 0


def test_replies_of_an_earlier_release_are_found(tmp_path: Path) -> None:
    line = json.dumps({"key": "sha256:a", "text": "one", "ended": True})
    (tmp_path / "samples-0.jsonl").write_text(f'{line}\n{{"key": "sha256:b"}}\n["x"]\n{line[:-9]}', encoding="utf-8")
    store = Replies(tmp_path)
    assert store.known == {"sha256:a": Reply("one", True)}
    store.add([("sha256:c", Reply("three", False))])
    assert Replies(tmp_path).known == {"sha256:a": Reply("one", True), "sha256:c": Reply("three", False)}


def test_verdicts_of_an_earlier_release_are_found(tmp_path: Path) -> None:
    from selfaug.common.fingerprint import text_hash
    from selfaug.evaluation.judge import PROMPT

    cache = tmp_path / "judge.jsonl"
    prompt = PROMPT.format(question="q", accepted="a", response="b")
    row = {"key": text_hash(f"m\0{prompt}"), "model": "m", "reply": '{"verdict": "wrong"}'}
    cache.write_text(json.dumps(row) + '\n{"key": "sha256:torn', encoding="utf-8")
    judge = Judge("http://localhost:9/v1", "m", cache)  # nobody answers there
    assert judge.verdicts([("q", ["a"], "b")]) == ["wrong"]
    assert (judge.from_cache, judge.asked) == (1, 0)


def test_parts_of_an_earlier_release_are_found(tmp_path: Path) -> None:
    key = key_of({"a": 1})
    store = Store(tmp_path)
    old = {"key": key, "part": "task-base", "payload": {"seconds": 1.5, "payload": [1]}}
    store.path("task-base", key).write_text(json.dumps(old), encoding="utf-8")
    assert store.get("task-base", key) == {"seconds": 1.5, "payload": [1]}


def test_a_line_is_added_behind_a_torn_one_and_a_full_disk_is_told(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lines.jsonl"
    Lines(path).add([{"key": "a", "x": 1}])
    path.write_bytes(path.read_bytes() + b'{"key": "b"')
    Lines(path).add([{"key": "c", "x": 3}])
    assert Lines(path).rows == {"a": {"key": "a", "x": 1}, "c": {"key": "c", "x": 3}}
    assert Lines(tmp_path / "other", [path]).rows.keys() == {"a", "c"}
