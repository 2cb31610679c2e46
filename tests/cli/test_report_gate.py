from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.made_runs import WEIGHTS, make_run, part, usual_parts, whole_run

from .conftest import Cli


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("made")
    return [whole_run(folder / name, size) for name, size in (("mild", 0.05), ("harsh", 0.4))]


def test_a_page_is_written_into_the_run_and_its_path_is_the_output(cli: Cli, runs: list[Path]) -> None:
    result = cli("report", runs[0])
    assert (result.code, result.out, result.err) == (
        0,
        f"{runs[0] / 'report.html'}\n",
        "selfaug report: reading the runs ...\n",
    )
    html = (runs[0] / "report.html").read_text()
    assert html.startswith("<!doctype html>")
    assert cli("report", runs[0]).code == 0
    assert (runs[0] / "report.html").read_text() == html


def test_several_runs_and_markdown(cli: Cli, runs: list[Path], tmp_path: Path) -> None:
    result = cli("report", *runs, cwd=tmp_path)
    assert (result.code, result.out) == (0, "report.html\n")
    assert (tmp_path / "report.html").read_text().count('class="run"') == 2
    result = cli("report", *runs, "--format", "md")
    assert result.code == 0
    assert result.out.startswith("## What fine-tuning gained")
    out = tmp_path / "new" / "card.md"
    assert cli("report", *runs, "--format", "md", "--output", out).out == f"{out}\n"
    assert out.read_text() == result.out
    assert cli("report", runs[0], "--output", "-").out.startswith("<!doctype html>")


def test_a_trained_run_has_a_page_that_names_what_is_missing(cli: Cli, trained: tuple[Path, object]) -> None:
    run = trained[0]
    out = run.parent / "page.html"
    result = cli("report", run, "--output", out)
    assert result.code == 0, result.err
    assert f"selfaug evaluate {run}" in result.err
    html = out.read_text()
    assert "NLL of responses" in html
    assert "Alignment" in html
    assert f"selfaug shift {run}" in html


def test_mistakes_of_report(cli: Cli, runs: list[Path], tmp_path: Path) -> None:
    for words, said in (
        (("report", tmp_path / "none"), "does not exist"),
        (("report", runs[0], runs[0]), "named twice"),
        (("report", runs[0], "--format", "pdf"), "invalid choice"),
        (("report", runs[0], "--output", tmp_path), "is a folder"),
        (("report", runs[0], "--regressions", "-1"), "--regressions is -1"),
        (("report", runs[0], "--fromat", "md"), "Did you mean '--format'?"),
    ):
        result = cli(*words)
        assert (result.code, result.out) == (2, ""), words
        assert said in result.err
        assert "hint:" in result.err
        assert "Traceback" not in result.err
    damaged = whole_run(tmp_path / "damaged")
    (damaged / "shift.json").write_text("{")
    result = cli("report", damaged)
    assert result.code == 2
    assert "shift.json', line 1, cannot be read" in result.err
    assert not (damaged / "report.html").exists()


def test_a_page_that_cannot_be_written_is_said(cli: Cli, runs: list[Path]) -> None:
    result = cli("report", runs[0], "--output", os.devnull + "/page.html")
    assert result.code == 2
    assert "cannot be written" in result.err


def test_the_gate_passes_fails_and_doubts(cli: Cli, runs: list[Path], tmp_path: Path) -> None:
    passed = cli("gate", runs[0], "--max-drop", "general=8pt", "--min-gain", "task=0")
    assert passed.code == 0, passed.err
    assert "passed" in passed.err
    assert passed.out.count("\npass ") == 2
    failed = cli("gate", runs[1], "--max-drop", "general=2pt", "--min-gain", "task=0")
    assert failed.code == 1
    assert "--max-drop general=2pt: mean of 2: general:arc:acc, general:ifeval:strict: surely lost more" in failed.err
    same = [1.0, 0.0] * 6
    few = make_run(tmp_path / "few", parts={"task": part("task", "task", {"f1": ("fraction", True, same, same)})})
    doubted = cli("gate", few, "--max-drop", "task=2pt")
    assert doubted.code == 3
    assert "12 items are too few" in doubted.err
    # A failure elsewhere is not hidden by a doubt.
    both = cli("gate", runs[1], "--max-drop", "general=2pt", "--max-drop", "ifeval=0.1pt")
    assert both.out.count("undecided") == 1
    assert both.code == 1


def test_the_gate_as_json_and_from_a_file(cli: Cli, runs: list[Path], tmp_path: Path) -> None:
    rules = tmp_path / "gate.yaml"
    rules.write_text("max_drop: [general=2pt, 'text:*=1']\nmin_gain:\n  - task=5pt\njson: true\n")
    result = cli("gate", runs[1], "--config", rules)
    assert result.code == 1
    found = json.loads(result.out)
    assert (found["verdict"], found["exit_code"]) == ("fail", 1)
    assert [one["verdict"] for one in found["checks"]] == ["fail", "pass", "pass"]
    first = found["checks"][0]
    assert first["low"] < first["gain"] < first["high"] < first["at_least"] == -0.02
    assert (first["items"], first["metrics"]) == (200, 2)
    assert len(found["notes"]) == 1


def test_mistakes_of_the_gate(cli: Cli, runs: list[Path], tmp_path: Path) -> None:
    unmeasured = make_run(tmp_path / "unmeasured")
    stale = whole_run(tmp_path / "stale")
    (stale / "manifest.json").write_text((stale / "manifest.json").read_text().replace(WEIGHTS, "sha256:other"))
    only = make_run(tmp_path / "only", parts={"task": usual_parts()["task"]})
    for words, said in (
        ((runs[0],), "nothing to decide"),
        ((runs[0], "--max-drop", "genral=2pt"), "Did you mean 'general'?"),
        ((runs[0], "--max-drop", "general=2points"), "'2points' is no limit"),
        ((tmp_path / "onyl", "--max-drop", "task=1pt"), "Did you mean 'only'?"),
        ((unmeasured, "--max-drop", "task=1pt"), "has not been evaluated"),
        ((stale, "--max-drop", "task=1pt"), "other weights"),
        ((only, "--max-drop", "general=1pt"), "no results of the group 'general'"),
    ):
        result = cli("gate", *words)
        assert (result.code, result.out) == (2, ""), words
        assert said in result.err
        assert "hint:" in result.err
        assert "Traceback" not in result.err
