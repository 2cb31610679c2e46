"""Is a results file that lacks something, or says two things, refused?"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from selfaug.common.errors import DataError
from selfaug.common.statistics import Items
from selfaug.evaluation.results import items_of, metric, primary, problems, read_results, read_samples, write_results


def results() -> dict[str, Any]:
    f1 = metric(Items.of([0, 1, 0, 1]), Items.of([1, 1, 0, 1]), unit="fraction", higher_is_better=True, primary=True)
    part = {
        "group": "task", "name": "task", "key": "sha256:1", "settings": {}, "data": {"rows": 4}, "prompts": "sha256:2",
        "items": 4, "left_out": {}, "counts": {}, "seconds": {"base": 1.0, "tuned": 1.0}, "metrics": {"f1": f1},
    }  # fmt: skip
    return {
        "schema": 1, "created": "2026-01-01T00:00:00Z", "command": ["selfaug"], "run": {"name": "r"}, "config": {},
        "seeds": {}, "versions": {}, "hashes": {}, "device": {}, "parts": {"task": part},
    }  # fmt: skip


def test_a_whole_one_is_written_and_read(tmp_path: Path) -> None:
    whole = results()
    assert problems(whole) == []
    entry = whole["parts"]["task"]["metrics"]["f1"]
    assert (entry["base"]["value"], entry["tuned"]["value"], entry["difference"]["value"]) == (0.5, 0.75, 0.25)
    assert entry["difference"]["interval"][0] == 0.0
    path = tmp_path / "results.json"
    write_results(path, whole)
    assert read_results(path) == whole
    assert primary(whole, "task") == {"task": ("f1", entry)}
    assert primary(whole, "general") == {}


PLANTED = [
    (("schema",), None, "schema: missing"),
    (("schema",), 2, "schema: 2"),
    (("parts", "task", "prompts"), None, "parts.task.prompts: missing"),
    (("parts", "task", "items"), True, "parts.task.items: bool"),
    (("parts", "task", "group"), "tsk", "parts.task.group: 'tsk'"),
    (("parts", "task", "metrics", "f1", "higher_is_better"), 1, "higher_is_better: int, expected bool"),
    (("parts", "task", "metrics", "f1", "difference", "value"), -0.25, "not tuned minus base"),
    (("parts", "task", "metrics", "f1", "difference", "interval"), [1.0, 0.0], "expected [low, high]"),
    (("parts", "task", "metrics", "f1", "difference", "interval"), ..., "no_interval_because"),
    (("parts", "task", "metrics", "f1", "base", "stderr"), float("nan"), "stderr: nan is not finite"),
    (("parts", "task", "metrics", "f1", "tuned", "n"), None, "f1.tuned.n: missing"),
]


@pytest.mark.parametrize(("place", "planted", "said"), PLANTED)
def test_each_planted_fault_is_named(place: tuple[str, ...], planted: Any, said: str) -> None:
    broken: Any = copy.deepcopy(results())
    inner = broken
    for name in place[:-1]:
        inner = inner[name]
    assert place[-1] in inner
    if planted is None:
        del inner[place[-1]]
    else:
        inner[place[-1]] = None if planted is ... else planted
    assert any(said in line for line in problems(broken)), problems(broken)


def test_two_primary_metrics_are_refused() -> None:
    broken = results()
    metrics = broken["parts"]["task"]["metrics"]
    metrics["em"] = metrics["f1"]
    assert problems(broken) == ["parts.task.metrics: more than one is primary"]


def test_what_cannot_be_read_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(DataError, match="has not been evaluated"):
        read_results(path)
    for text in ("{", "[]", "\xff", json.dumps({"schema": 1})):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(DataError, match=r"results\.json"):
            read_results(path)


def test_values_of_another_program_stand_as_they_are() -> None:
    base, tuned = Items.of([0, 1]), Items.of([1, 1])
    same = metric(
        base, tuned, unit="fraction", higher_is_better=True, reported={"base": (0.5, 0.25), "tuned": (1.0, None)}
    )
    assert same is not None
    assert same["base"]["stderr"] == 0.25
    assert same["tuned"]["stderr"] == 0.0  # nothing reported, so our own
    assert same["difference"]["interval"] is not None
    other = metric(
        base, tuned, unit="fraction", higher_is_better=True, reported={"base": (0.4, 0.1), "tuned": (1.0, None)}
    )
    assert other is not None
    assert other["difference"]["value"] == pytest.approx(0.6)
    assert other["difference"]["interval"] is None
    assert "ratio of sums" in other["difference"]["no_interval_because"]
    assert metric(Items.of([None]), Items.of([None]), unit="x", higher_is_better=True) is None


def test_samples_give_the_items_back(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    rows = [
        {"part": "task", "base": {"values": {"f1": 0.5}}, "tuned": {"values": {"f1": [3, 4]}}},
        {"part": "general:x", "base": {"values": {}}, "tuned": {"values": {}}},
        {"part": "task", "base": {"values": {"f1": None}}, "tuned": {"values": {"f1": 1}}},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    samples = list(read_samples(path, "task"))
    assert samples == [rows[0], rows[2]]
    base, tuned = items_of(samples, "f1")
    assert base.denominator_n.tolist() == [1, 0]
    assert (tuned.numerator_n.tolist(), tuned.denominator_n.tolist()) == ([3, 1], [4, 1])
