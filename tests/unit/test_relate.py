"""Are the coefficients, their intervals and the picture those of the points?"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfaug.common.errors import ConfigError, DataError
from selfaug.run.folder import RunFolder
from selfaug.shift.picture import draw, headline
from selfaug.shift.relate import Point, points_of, relate


def points(shift: list[float], forgetting: list[float], runs: list[int] | None = None) -> list[Point]:
    names = runs if runs is not None else list(range(len(shift)))
    return [
        Point(f"run{run}", "final", "selfaug" if run % 2 else "sft", run % 2, x, y)
        for run, x, y in zip(names, shift, forgetting, strict=True)
    ]


# ---- coefficients --------------------------------------------------------------------------------------------------


def test_coefficients_by_hand() -> None:
    """x deviates by -1, 0, 1 and y by -1, -1, 2 from its mean: r = 3 / sqrt(2 · 6); ranks 1, 2, 3 and 1.5, 1.5, 3."""
    found = relate(points([1, 2, 3], [0, 0, 3]), resamples=200)
    assert found.pearson.value == pytest.approx(3 / np.sqrt(12))
    assert found.spearman.value == pytest.approx(1.5 / np.sqrt(2 * 1.5))


def test_a_line_and_an_order() -> None:
    x = [0.1, 0.2, 0.4, 0.8, 1.6]
    line, curve = relate(points(x, [3 * v - 1 for v in x])), relate(points(x, [v**3 for v in x]))
    assert line.pearson.value == pytest.approx(1)
    assert curve.spearman.value == pytest.approx(1)
    assert curve.pearson.value < 0.99
    # Every resample is on the line too: the interval is a point, and is no NaN.
    assert line.pearson.low == pytest.approx(1)
    assert line.pearson.high == pytest.approx(1)
    assert line.pearson.how.startswith("percentile")


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100), sign=st.sampled_from([1, -1]))
def test_units_do_not_matter_and_signs_turn_round(seed: int, scale: float, sign: int) -> None:
    x, y = np.random.default_rng(seed).normal(size=(2, 8))
    plain = relate(points(list(x), list(y)), resamples=100)
    other = relate(points(list(x), list(sign * scale * y + 5)), resamples=100)
    assert other.pearson.value == pytest.approx(sign * plain.pearson.value, abs=1e-9)
    assert other.spearman.value == pytest.approx(sign * plain.spearman.value, abs=1e-9)


def test_checkpoints_of_one_run_go_together() -> None:
    """Each run's point five times over is no more evidence; five times as many runs would be."""
    x, y = np.random.default_rng(1).normal(size=(2, 12))
    y = x + 0.8 * y
    one = relate(points(list(x), list(y)))
    clustered = relate(points(list(np.repeat(x, 5)), list(np.repeat(y, 5)), list(np.repeat(range(12), 5))))
    apart = relate(points(list(np.repeat(x, 5)), list(np.repeat(y, 5))), resamples=2000)
    assert (clustered.runs, clustered.points) == (12, 60)
    # BCa counts the resamples below the value: rounding breaks the few exact ties another way.
    assert clustered.pearson.low == pytest.approx(one.pearson.low, abs=0.01)
    assert clustered.spearman.high == pytest.approx(one.spearman.high, abs=0.01)
    width = [found.pearson.high - found.pearson.low for found in (one, apart)]  # type: ignore[operator]
    assert width[1] < 0.7 * width[0]


@pytest.mark.nightly
def test_the_interval_covers_the_truth() -> None:
    """40 samples of 25 runs with a correlation of 0.7: a 90 % interval that covered it 29 times or fewer is wrong."""
    draw_, covered = np.random.default_rng(5), 0
    for number in range(40):
        x, noise = draw_.normal(size=(2, 25))
        y = 0.7 * x + np.sqrt(1 - 0.49) * noise
        found = relate(points(list(x), list(y)), resamples=400, confidence=0.9, seed=number).pearson
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.7 <= found.high
    assert 30 <= covered <= 40


def test_the_seed_decides() -> None:
    x, y = np.random.default_rng(2).normal(size=(2, 9))
    same, other = (relate(points(list(x), list(y)), resamples=300, seed=seed).pearson for seed in (0, 1))
    assert relate(points(list(x), list(y)), resamples=300).pearson == same
    assert same.low != other.low
    assert same.value == other.value


def test_what_cannot_be_related_is_refused() -> None:
    with pytest.raises(DataError, match="2 runs"):
        relate(points([1, 2, 3, 4], [1, 2, 3, 4], [0, 0, 1, 1]))
    with pytest.raises(DataError, match="same forgetting"):
        relate(points([1, 2, 3], [2, 2, 2]))


# ---- reading -------------------------------------------------------------------------------------------------------


def measure(value: float) -> dict[str, Any]:
    return {"value": value, "stderr": 0.1}


def write_shift(folder: Path, shift: float, base_nll: float = 1.5, tuned_nll: float = 2.0, **change: Any) -> RunFolder:
    folder.mkdir(parents=True, exist_ok=True)
    region = {
        "tokens": 9, "texts": 3, "base_to_tuned": measure(shift), "tuned_to_base": measure(10 * shift),
        "base_nll": measure(base_nll), "tuned_nll": measure(tuned_nll),
    }  # fmt: skip
    entry = {"name": "final", "step": 4, "regions": {"question": region, "general_text": region}, "totals": {}}
    early = {
        **entry,
        "name": "checkpoint-2",
        "regions": {**entry["regions"], "question": {**region, "base_to_tuned": measure(0.5)}},
    }
    whole = {
        "schema": 1, "run": {"method": "selfaug", "alpha": 2.0},
        "base": {"name": "m", "weights": "sha256:1"},
        "sources": {
            "data": {"name": "d", "files": [{"hash": "sha256:2"}], "max_length": 64, "measured": 3},
            "general_text": {"files": [{"hash": "sha256:3"}], "measured": 3},
        },
        "checkpoints": [early, entry],
    }  # fmt: skip
    (folder / "shift.json").write_text(json.dumps({**whole, **change}))
    return RunFolder(folder)


def test_points_of_a_run(tmp_path: Path) -> None:
    run = write_shift(tmp_path / "a", 0.25)
    (final,), about = points_of(run, where="question", direction="tuned_to_base")
    assert final == Point("a", "final", "selfaug", 2.0, 2.5, pytest.approx(0.5))
    both, _ = points_of(run, where="question", direction="base_to_tuned", every=True)
    assert [(p.state, p.shift) for p in both] == [("checkpoint-2", 0.5), ("final", 0.25)]
    assert about["base"] == "sha256:1"


@pytest.mark.parametrize("higher", [True, False])
def test_forgetting_is_what_a_metric_lost(tmp_path: Path, higher: bool) -> None:
    from selfaug.evaluation.results import problems

    run = write_shift(tmp_path / "a", 0.25)
    side = {"stderr": 0.1, "n": 10}
    entry = {
        "unit": "fraction", "higher_is_better": higher, "primary": True, "difference": None,
        "base": {"value": 0.75, **side}, "tuned": {"value": 0.5, **side},
    }  # fmt: skip
    empty: dict[str, Any] = {key: {} for key in ("run", "config", "seeds", "versions", "hashes", "device")}
    part = {
        "group": "general", "name": "ifeval", "key": "k", "settings": {}, "data": {}, "prompts": "p", "items": 10,
        "left_out": {}, "counts": {}, "seconds": {}, "metrics": {"strict": entry},
    }  # fmt: skip
    results = {
        "schema": 1,
        "created": "",
        "command": [],
        **empty,
        "parts": {"task": {**part, "group": "task"}, "general:ifeval": part, "text:a": part},
    }
    assert problems(results) == []
    (run.path / "results.json").write_text(json.dumps(results))
    for name in ("general:ifeval", "general:ifeval:strict", "task", "task:strict", "general"):
        (point,), _ = points_of(run, where="question", direction="base_to_tuned", forgetting=name)
        assert point.forgetting == pytest.approx(0.25 if higher else -0.25)
    with pytest.raises(ConfigError, match=r"no part 'general:ifevel'. Did you mean 'general:ifeval'"):
        points_of(run, where="question", direction="base_to_tuned", forgetting="general:ifevel")
    with pytest.raises(ConfigError, match=r"no metric 'strct'. Did you mean 'strict'"):
        points_of(run, where="question", direction="base_to_tuned", forgetting="general:ifeval:strct")
    worse = json.loads(json.dumps(part))
    worse["metrics"]["strict"]["tuned"]["value"] = 0.25 if higher else 1.0
    (run.path / "results.json").write_text(json.dumps({**results, "parts": {**results["parts"], "text:a": worse}}))
    (point,), _ = points_of(run, where="question", direction="base_to_tuned", forgetting="general")
    assert point.forgetting == pytest.approx((0.25 + 0.5) / 2 if higher else (-0.25 + 0.25) / 2)
    worse["metrics"]["strict"]["unit"] = "nats/token"
    (run.path / "results.json").write_text(json.dumps({**results, "parts": {**results["parts"], "text:a": worse}}))
    with pytest.raises(ConfigError, match="different units"):
        points_of(run, where="question", direction="base_to_tuned", forgetting="general")
    with pytest.raises(ConfigError, match="finished weights alone"):
        points_of(run, where="question", direction="base_to_tuned", forgetting="general:ifeval", every=True)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = RunFolder(tmp_path / "none")
    missing.path.mkdir()
    with pytest.raises(DataError, match="is not measured"):
        points_of(missing, where="prompt", direction="base_to_tuned")
    run = write_shift(tmp_path / "a", 0.25)
    with pytest.raises(ConfigError, match="Did you mean 'question'"):
        points_of(run, where="questions", direction="base_to_tuned")
    with pytest.raises(DataError, match="no 'prompt'"):
        points_of(run, where="prompt", direction="base_to_tuned")
    for damage in ("{", "[]", '{"schema": 1}'):
        (run.path / "shift.json").write_text(damage)
        with pytest.raises(DataError, match="cannot be read"):
            points_of(run, where="question", direction="base_to_tuned")


# ---- the picture ---------------------------------------------------------------------------------------------------


def test_the_picture_has_a_mark_for_each_point_and_is_the_same_twice(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    x, y = np.random.default_rng(3).normal(size=(2, 7))
    found = points(list(x), list(y))
    relation = relate(found, resamples=200)
    for name in ("one.svg", "two.svg"):
        draw(found, relation, tmp_path / name, shift_label="shift", forgetting_label="forgetting")
    one = (tmp_path / "one.svg").read_bytes()
    assert one == (tmp_path / "two.svg").read_bytes()
    space = "{http://www.w3.org/2000/svg}"
    groups = {group.get("id"): group for group in ET.fromstring(one).iter(f"{space}g")}
    marks = [len(list(groups[f"PathCollection_{n}"].iter(f"{space}use"))) for n in (1, 2)]
    assert sorted(marks) == [3, 4]
    assert f"{relation.pearson.value:.2f}" in headline(relation)
    draw(found, relation, tmp_path / "one.png", shift_label="shift", forgetting_label="forgetting")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match=r"\.pdf"):
        draw(found, relation, tmp_path / "one.pdf", shift_label="shift", forgetting_label="forgetting")
