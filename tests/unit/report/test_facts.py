"""Are the facts of a run those of its files, and is a damaged file said to be so?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfaug.common.errors import ConfigError, DataError
from selfaug.report.about import origins
from selfaug.report.facts import report_of
from selfaug.report.page import page
from selfaug.report.regressions import LONGEST, marked, read_worst
from selfaug.report.training import read_log, training_of
from tests.made_runs import WEIGHTS, log, make_run, shift, usual_parts, whole_run


def test_the_cost_is_that_of_the_log() -> None:
    cost = training_of(log(5), resumed=False).cost
    assert (cost.steps, cost.seconds, cost.tokens, cost.reference_tokens) == (5, 754.5, 20000, 5000)
    assert (cost.tokens_per_second, cost.reference_share) == (1503.5, 0.25)
    assert training_of(log(5), resumed=True).cost.seconds is None
    nothing = training_of([{"step": 1, "loss": 2.0}], resumed=False)
    assert (nothing.cost.tokens, nothing.cost.reference_share) == (None, None)
    assert nothing.curves["loss"].values == (2.0,)


def test_the_reached_shift_stands_beside_the_one_that_was_asked_for() -> None:
    metrics = {"align_target": 0.05, "shift": 0.0512, "alpha": 1.25, "train_loss": 2.0}
    manifest = {"finished": {"metrics": metrics}}
    shown = "0.0512 nats a token at the end of training, 0.05 asked; α 1.25"
    assert ("shift of the prompts", shown) in origins(manifest, None)
    assert "shift of the prompts" not in dict(origins({"finished": {"metrics": {"train_loss": 2.0}}}, None))


def test_curves_leave_out_what_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "nll": 2.5}\n{"step": 2, "nll": null}\n{"step": 3, "nll": 1.5}\n[1]\n{"step": 4, "nl')
    curve = training_of(read_log(path), resumed=False).curves["nll"]
    assert (curve.steps, curve.values) == ((1, 3), (2.5, 1.5))


def test_an_answer_that_was_cut_at_the_limit_is_marked(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run", 0.1)
    path = run / "samples.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["part"] == "general:arc":
            line["tuned"]["cut"], line["base"]["cut"] = line["index"] == 1, False
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = {one.part: one for one in report_of([str(run)], regressions=3).runs[0].worst}["general:arc"].shown
    assert [(fall.id, fall.base_cut, fall.tuned_cut) for fall in shown] == [
        ("q1", False, True), ("q3", False, False), ("q5", False, False),
    ]  # fmt: skip
    text = page(report_of([str(run)], regressions=3))
    assert text.count("cut at the limit of tokens") == 1


def test_the_worst_falls_come_first_and_equal_ones_in_order(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run", 0.1)
    worst = {one.part: one for one in report_of([str(run)], regressions=3).runs[0].worst}
    arc = worst["general:arc"]
    # A drop of 0.05 turns every second of the first 20 items from right to wrong.
    assert (arc.items, arc.worse, arc.better) == (200, 10, 0)
    assert [fall.id for fall in arc.shown] == ["q1", "q3", "q5"]
    assert [(fall.base, fall.tuned) for fall in arc.shown] == [(1.0, 0.0)] * 3
    # NLL: lower is better, and a value is a ratio.
    assert worst["text:news"].shown[0].tuned - worst["text:news"].shown[0].base == pytest.approx(0.5 / 8)
    assert worst["task"].worse == 0


@settings(deadline=None)
@given(st.text(alphabet="ab \n.", max_size=60), st.text(alphabet="ab \n.", max_size=60))
def test_marked_pieces_are_the_texts_themselves(base: str, tuned: str) -> None:
    left, right = marked(base, tuned)
    assert "".join(text for _, text in left) == base
    assert "".join(text for _, text in right) == tuned
    assert {kind for kind, _ in left} <= {"same", "removed"}
    assert {kind for kind, _ in right} <= {"same", "added"}
    same = [["".join(text.split()) for kind, text in side if kind == "same"] for side in (left, right)]
    assert same[0] == same[1]
    if base == tuned:
        assert {kind for kind, _ in (*left, *right)} <= {"same"}


def test_only_the_words_that_differ_are_marked() -> None:
    left, right = marked("It was Ada in 1843.", "It was Bo in 1843.")
    assert [text.strip() for kind, text in left if kind == "removed"] == ["Ada"]
    assert [text.strip() for kind, text in right if kind == "added"] == ["Bo"]


def test_a_long_answer_is_cut_and_says_so() -> None:
    left, _ = marked("word " * LONGEST, "word")
    text = "".join(piece for _, piece in left)
    assert len(text) < LONGEST + 60
    assert text.endswith(f"({4 * LONGEST:,} more characters)")


def test_results_of_other_weights_are_doubted(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    assert report_of([str(run)]).runs[0].warnings == ()
    path = run / "manifest.json"
    path.write_text(path.read_text().replace(WEIGHTS, "sha256:other"))
    assert [text.split()[0] for text in report_of([str(run)]).runs[0].warnings] == ["results.json", "shift.json"]


def test_runs_are_related_only_on_the_same_texts(tmp_path: Path) -> None:
    runs = [whole_run(tmp_path / f"r{i}", 0.1 + i / 10) for i in range(4)]
    found = report_of([str(run) for run in runs]).related
    assert found is not None
    assert found.relation is not None
    assert (found.relation.runs, [point.run for point in found.points]) == (4, ["A", "B", "C", "D"])
    assert found.relation.pearson.value > 0.9
    two = report_of([str(run) for run in runs[:2]]).related
    assert two is not None
    assert (len(two.points), two.relation) == (2, None)
    other = json.loads((runs[1] / "shift.json").read_text())
    other["sources"]["data"]["files"][0]["hash"] = "sha256:9"
    (runs[1] / "shift.json").write_text(json.dumps(other))
    apart = report_of([str(run) for run in runs]).related
    assert apart is not None
    assert apart.points == ()
    assert "other texts" in (apart.because or "")
    assert report_of([str(runs[0])]).related is None


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name / "run") for name in ("a", "b")]
    assert [run.name for run in report_of([str(run) for run in runs]).runs] == ["a/run", "b/run"]


def test_mistakes_with_folders(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"does not exist\. Did you mean 'run'\?"):
        report_of([str(tmp_path / "rum")])
    with pytest.raises(ConfigError, match=r"has no config\.yaml"):
        report_of([str(tmp_path)])
    with pytest.raises(ConfigError, match="named twice"):
        report_of([str(run), str(tmp_path / "." / "run")])
    with pytest.raises(ConfigError, match="more than one page"):
        report_of([str(run)] * 27)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("results.json", "{}"),
        ("results.json", "[1"),
        ("shift.json", "[]"),
        ("shift.json", '{"checkpoints": [{"name": "final"}]}'),
        ("samples.jsonl", '{"part": "task"}'),
        ("samples.jsonl", "nothing"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, text: str) -> None:
    run = whole_run(tmp_path / "run")
    (run / name).write_text(text)
    with pytest.raises(DataError, match=name) as error:
        report_of([str(run)])
    assert "selfaug " in error.value.hint


def test_a_shift_without_final_weights_is_missing(tmp_path: Path) -> None:
    unfinished = shift()
    unfinished["checkpoints"][0]["name"] = "checkpoint-4"
    run = make_run(tmp_path / "run", moved=unfinished)
    facts = report_of([str(run)]).runs[0]
    assert facts.shift is None
    assert "The shift is not measured" in [item.what for item in facts.missing]


def test_a_text_that_nobody_answers_has_no_empty_answer(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", parts={"task": usual_parts()["task"]})
    path = run / "samples.jsonl"
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for sample in samples:
        sample["expected"], sample["answerable"] = None, True
        sample["base"]["response"] = sample["tuned"]["response"] = ""
        sample["base"]["values"]["f1"], sample["tuned"]["values"]["f1"] = 1.0, 0.5
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples), encoding="utf-8")
    shown = [fall for worst in read_worst(path, report_of([str(run)]).runs[0].metrics, 5) for fall in worst.shown]
    assert shown, "nothing became worse"
    assert all(fall.base_response is None and fall.tuned_response is None for fall in shown if not fall.expected)
    assert any(not fall.expected for fall in shown)


def test_a_sample_without_a_value_is_no_regression(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", parts={"task": usual_parts()["task"]})
    path = run / "samples.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["tuned"]["values"]["f1"] = None
    lines[1]["base"]["values"]["f1"] = [1.0, 0]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_worst(path, report_of([str(run)]).runs[0].metrics, 5)
    assert found[0].items == 198
