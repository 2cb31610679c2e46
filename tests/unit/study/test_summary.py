"""Numbers of a comparison against cases that can be worked out by hand."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfaug.common.errors import DataError
from selfaug.evaluation.results import write_results
from selfaug.study.grid import Setting
from selfaug.study.picture import draw
from selfaug.study.scores import half_of, read_scores
from selfaug.study.summary import joined, summary, yardstick
from selfaug.study.table import markdown
from tests.made_runs import part, results

N = 60
BASE = (0.2, 0.9)
SFT = Setting("sft", "learning_rate", 1e-3)
Value = float | Callable[[str], float]


def spread(value: Value, name: str) -> list[float]:
    """One number for all items, or a number for each half."""
    if not callable(value):
        return [value] * N
    return [value(half_of(name, {"id": f"q{i}"})) for i in range(N)]


def written(
    folder: Path, task: Value, general: Value, *, base: tuple[float, float] = BASE, lower: bool = False
) -> Path:
    folder.mkdir(parents=True)
    unit = "nats/token" if lower else "fraction"
    made = {
        "task": part("task", "task", {"f1": ("fraction", True, [base[0]] * N, spread(task, "task"))}),
        "general:a": part(
            "general:a", "general", {"m": (unit, not lower, [base[1]] * N, spread(general, "general:a"))}
        ),
    }
    write_results(folder / "results.json", results({name: body for name, (body, _) in made.items()}))
    lines = [json.dumps(sample) for _, samples in made.values() for sample in samples]
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def compared(
    tmp_path: Path, runs: Mapping[Setting, list[tuple[Any, Any]]], *, resamples: int = 500, **more: Any
) -> dict[str, Any]:
    folders = {
        setting: {i: written(tmp_path / f"{setting.label}-{i}", *values, **more) for i, values in enumerate(found)}
        for setting, found in runs.items()
    }
    return summary(read_scores(folders), resamples=resamples)


def alpha(value: float) -> Setting:
    return Setting("selfaug", "alpha", value)


def test_axes_areas_and_the_front(tmp_path: Path) -> None:
    other = Setting("l2", "update_weight", 1.0)
    found = compared(
        tmp_path, {SFT: [(0.8, 0.5)], alpha(2): [(0.74, 0.86)], alpha(8): [(0.5, 0.9)], other: [(0.5, 0.7)]}
    )
    at = {p["setting"]: (pytest.approx(p["task"]), pytest.approx(p["retention"])) for p in found["points"]}
    assert at == {SFT.label: (1, 0), alpha(2).label: (0.9, 0.9), alpha(8).label: (0.5, 1), other.label: (0.5, 0.5)}
    areas = {c["curve"]: c["hypervolume"] for c in found["curves"]}
    assert areas["selfaug"] == pytest.approx(0.9 * 0.9 + 0.5 * 0.1)
    assert areas["l2"] == pytest.approx(0.25)
    assert [p["setting"] for p in found["points"] if p.get("front")] == [SFT.label, alpha(2).label, alpha(8).label]
    assert found["says"] == (
        "No rival dominates selfaug anywhere on its curve (all 4 pairs at once: p < 0.001). "
        "One seed: how much seeds differ is not in it."
    )
    assert found["dominance"] == {"p_none": 0, "pairs": 4, "open": []}
    assert found["curves"][0]["chosen"] == alpha(2).label
    text = markdown(joined({"": found}))
    assert "0.90 [0.90, 0.90]" in text
    draw(joined({"": found}), tmp_path / "a.svg")
    draw(joined({"": found}), tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_what_lies_outside_the_picture_is_counted(tmp_path: Path) -> None:
    found = compared(tmp_path, {SFT: [(0.8, 0.5)], alpha(2): [(0.8, 0.8)], alpha(8): [(0.8, 0.1)]})
    draw(joined({"": found}), tmp_path / "a.svg")
    assert "1 of 3 settings lie outside" in (tmp_path / "a.svg").read_text()
    inside = compared(tmp_path / "b", {SFT: [(0.8, 0.5)], alpha(2): [(0.8, 0.8)]})
    draw(joined({"": inside}), tmp_path / "b.svg")
    assert "lie outside" not in (tmp_path / "b.svg").read_text()


def test_less_is_better_in_nats(tmp_path: Path) -> None:
    found = compared(tmp_path, {SFT: [(0.8, 2.0)], alpha(2): [(0.8, 1.25)]}, base=(0.2, 1.0), lower=True)
    assert [p["retention"] for p in found["points"]] == pytest.approx([0, 0.75])


def test_seeds_enter_by_students_t(tmp_path: Path) -> None:
    """Items do not vary here: the interval is the textbook's over the three seeds, in units of what LoRA lost."""
    general = (0.7, 0.75, 0.9)
    found = compared(tmp_path, {SFT: [(0.8, 0.5)] * 3, alpha(2): [(0.5, each) for each in general]}, resamples=40_000)
    point = found["points"][1]
    assert (point["task"], point["retention"]) == (pytest.approx(0.5), pytest.approx(0.7083, abs=1e-4))
    assert point["task_interval"] == pytest.approx([0.5, 0.5])
    stderr = statistics.stdev(general) / math.sqrt(3) / 0.4
    low, high = point["retention_interval"]
    assert (high - low) / 2 == pytest.approx(4.303 * stderr, rel=0.05)  # t of two degrees of freedom, 40,000 draws
    assert (high + low) / 2 == pytest.approx(0.7083, abs=0.05)


def test_what_seeds_share_cancels(tmp_path: Path) -> None:
    """A seed that is bad for LoRA is as bad for the other: their difference is known, and LoRA is its own scale."""
    lucky = [-0.1, 0.0, 0.1]
    runs = {SFT: [(0.7 + e, 0.5) for e in lucky], alpha(2): [(0.7 + e, 0.8) for e in lucky]}
    points = compared(tmp_path, runs)["points"]
    assert [p["task_interval"] for p in points] == [pytest.approx([1, 1])] * 2
    apart = {SFT: runs[SFT], alpha(2): [runs[alpha(2)][i] for i in (1, 2, 0)]}
    low, high = compared(tmp_path / "b", apart)["points"][1]["task_interval"]
    assert high - low > 0.5


def test_a_missing_run_leaves_the_others_in_pairs(tmp_path: Path) -> None:
    tasks = (0.65, 0.5, 0.65, 0.8)
    both = {seed: written(tmp_path / f"a{seed}", tasks[seed], 0.5) for seed in range(4)}
    some = {seed: written(tmp_path / f"b{seed}", tasks[seed], 0.8) for seed in (1, 2, 3)}
    scores = read_scores({SFT: both, alpha(2): some})
    drawn = scores.drawn("report", 4000, 0)
    gap, alone = drawn["task", alpha(2)] - drawn["task", SFT], drawn["task", alpha(2)]
    spread = [np.percentile(np.abs(each - np.median(each)), 90) for each in (gap, alone)]
    assert spread[0] < 0.7 * spread[1]
    found = scores.gap("report", "task", alpha(2), SFT)
    assert (found.value, found.stderr) == (pytest.approx(0), pytest.approx(0))


def test_a_strength_is_chosen_where_it_is_not_reported(tmp_path: Path) -> None:
    lucky = {"choose": 0.8, "report": 0.3}.__getitem__
    found = compared(tmp_path, {SFT: [(0.8, 0.5)], alpha(2): [(lucky, 0.9)], alpha(8): [(0.6, 0.9)]})
    assert next(c for c in found["curves"] if c["curve"] == "selfaug")["chosen"] == alpha(2).label
    assert found["points"][1]["task"] == pytest.approx((0.3 - 0.2) / 0.6)


def test_the_yardstick_is_the_best_plain_rate(tmp_path: Path) -> None:
    fast = Setting("sft", "learning_rate", 1e-2)
    folders = {SFT: {0: written(tmp_path / "a", 0.7, 0.8)}, fast: {0: written(tmp_path / "b", 0.8, 0.5)}}
    assert yardstick(read_scores(folders)) == fast


def test_a_rival_that_beats_it_is_named(tmp_path: Path) -> None:
    rival = Setting("replay", "replay_ratio", 0.1)
    found = compared(tmp_path, {SFT: [(0.8, 0.5)], alpha(2): [(0.7, 0.8)], rival: [(0.75, 0.85)]})
    assert found["says"].startswith("Yes, selfaug is dominated")
    assert "replay replay_ratio=0.1 beats selfaug alpha=2 (p < 0.001)" in found["says"]
    spread = [(0.5, 0.85), (0.75, 0.85), (0.95, 0.85)]
    own, scale = [(0.7, 0.8)] * 3, [(0.8, 0.5)] * 3
    unsure = compared(tmp_path / "b", {SFT: scale, alpha(2): own, rival: spread})
    assert unsure["says"].startswith("Not surely: replay replay_ratio=0.1 beats selfaug alpha=2")
    other = Setting("replay", "replay_ratio", 0.4)
    both = compared(tmp_path / "c", {SFT: scale, alpha(2): own, rival: [(0.75, 0.85)] * 3, other: spread})["says"]
    assert both.index("replay_ratio=0.1 beats") < both.index("In the means also: replay replay_ratio=0.4 beats")
    open_ = compared(tmp_path / "d", {SFT: scale, alpha(2): own, rival: [(e - 0.1, g) for e, g in spread]})["says"]
    assert open_.startswith("No rival dominates selfaug in the means, which is not sure at 5%: replay")


def test_an_optimum_at_the_end_of_its_strengths_is_said(tmp_path: Path) -> None:
    at_end = {SFT: [(0.8, 0.5)], alpha(0.5): [(0.8, 0.6)], alpha(2): [(0.8, 0.7)], alpha(8): [(0.8, 0.8)]}
    found = compared(tmp_path, at_end)
    edge = {c["curve"]: c["edge"] for c in found["curves"]}
    assert edge == {"selfaug": "highest", "sft": None}  # one setting has no ends
    assert "On the edge of its strengths: selfaug is best at the highest" in markdown(joined({"": found}))
    inside = {**at_end, alpha(8): [(0.4, 0.8)]}
    assert [c["edge"] for c in compared(tmp_path / "b", inside)["curves"]] == [None, None]
    whole = [Setting("wise-ft", "adapter_scale", value) for value in (0.5, 1.0)]  # no adapter is more than whole
    ends = compared(tmp_path / "c", {SFT: [(0.8, 0.5)], whole[0]: [(0.5, 0.55)], whole[1]: [(0.8, 0.6)]})
    assert [c["edge"] for c in ends["curves"] if c["curve"] == "wise-ft"] == [None]
    fast = Setting("sft", "learning_rate", 1e-2)  # of plain LoRA it is the best for the task that counts
    rates = compared(tmp_path / "d", {SFT: [(0.7, 0.8)], fast: [(0.8, 0.5)], alpha(2): [(0.7, 0.8)]})
    assert [c["edge"] for c in rates["curves"] if c["curve"] == "sft"] == ["highest"]


def test_a_loss_that_is_not_the_metric_is_named_where_the_metric_is_an_nll(tmp_path: Path) -> None:
    found = joined({"": compared(tmp_path, {SFT: [(0.8, 0.5)], alpha(2): [(0.8, 0.8)]})})
    found["other_losses"] = ["dft"]
    assert "minimise" not in markdown(found)
    found["worlds"][0]["task_unit"] = "nats/token"
    assert "NLL, which dft do not minimise" in markdown(found)


def test_nothing_lost_or_gained_is_said(tmp_path: Path) -> None:
    kept = compared(tmp_path / "a", {SFT: [(0.8, 0.9)], alpha(2): [(0.8, 0.9)]})
    assert "plain LoRA forgot nothing" in kept["says"]
    assert "forgot nothing" in markdown(joined({"": kept}))
    assert "gained nothing" in compared(tmp_path / "b", {SFT: [(0.1, 0.5)]})["says"]


def test_worlds_stand_side_by_side(tmp_path: Path) -> None:
    one = compared(tmp_path / "a", {SFT: [(0.8, 0.5)], alpha(2): [(0.74, 0.86)]})
    flat = compared(tmp_path / "b", {SFT: [(0.8, 0.95)], alpha(2): [(0.8, 0.95)]})
    found = joined({"m=a": one, "m=b": flat})
    assert found["says"] == (
        "m=a: No rival dominates selfaug anywhere on its curve (all 1 pairs at once: p < 0.001). "
        "One seed: how much seeds differ is not in it. "
        "m=b: plain LoRA forgot nothing: there is nothing to scale by."
    )
    assert [p["world"] for p in found["points"]] == ["m=a", "m=a", "m=b", "m=b"]
    text = markdown(found)
    assert "m=a: Base: task 0.2, general 0.9. LoRA (sft learning_rate=0.001): task 0.8, general 0.5." in text
    assert "m=b: Base: task 0.2, general 0.9. LoRA (sft learning_rate=0.001): task 0.8, general 0.95." in text
    assert text.count("| selfaug alpha=2") == 3  # chosen in the one, and a point of each
    for point in found["points"]:
        point["shift"] = [0.25, 0.5]
    assert "| 0.375 |" in markdown(found)
    draw(found, tmp_path / "a.svg")
    assert "front" not in (tmp_path / "a.svg").read_text()


def test_other_items_are_refused(tmp_path: Path) -> None:
    one, two = written(tmp_path / "a", 0.8, 0.5), written(tmp_path / "b", 0.8, 0.5)
    body = json.loads((two / "results.json").read_text())
    body["parts"]["task"]["prompts"] = "sha256:other"
    (two / "results.json").write_text(json.dumps(body))
    with pytest.raises(DataError, match="other items"):
        read_scores({SFT: {0: one, 1: two}})
    with pytest.raises(DataError, match="no task metric 'f2'"):
        read_scores({SFT: {0: one}}, "f2")
