"""Are numbers, and nothing else, made of an evaluation and a gate, and given to the trackers of the run?"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from selfaug.cli.gate import EXIT_CODES
from selfaug.cli.tracking import of_evaluation, of_gate, of_training
from selfaug.evaluation.results import read_results
from selfaug.report.gate import check, overall, parse_rule
from selfaug.run.folder import RunFolder
from selfaug.run.trackers import TRACKERS, go_on, remember, send
from tests.made_runs import HOSTILE, whole_run


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(whole_run(tmp_path / "run", 0.2))
    entries = {
        "trackio": {"project": "p", "name": "n", "space_id": None},
        "mlflow": {"run_id": "abc", "tracking_uri": "sqlite:///x.db"},
    }
    folder.trackers.write_text(json.dumps(entries))
    return folder


def test_gains_are_positive_where_the_tuned_model_is_better_and_flips_are_counted(run: RunFolder) -> None:
    results = read_results(run.results)
    numbers = of_evaluation(results)
    entry = results["parts"]["general:arc"]["metrics"]["acc"]
    assert numbers["general:arc/acc/base"] == entry["base"]["value"] == 0.5
    assert numbers["general:arc/acc/gain"] == pytest.approx(-0.1)
    assert numbers["general:arc/acc/lost"] == 20
    assert numbers["general:arc/acc/n"] == 200
    risen = results["parts"]["text:news"]["metrics"]["nll"]["difference"]
    assert risen["value"] > 0
    assert numbers["text:news/nll/gain"] == -risen["value"]
    assert numbers["text:news/nll/gain_low"] == -risen["interval"][1]
    assert "text:news/nll/lost" not in numbers
    assert all(type(number) is float for number in numbers.values())


def test_a_verdict_is_its_exit_code(run: RunFolder) -> None:
    results = read_results(run.results)
    checks = [
        one
        for kind, text in (
            ("max-drop", "general:arc=2pt"),
            ("min-gain", "task=1pt"),
            ("max-drop", "general:*:acc=90pt"),  # a looser limit does not hide that a stricter one is broken
        )
        for one in check(parse_rule(kind, text), results)[0]  # type: ignore[arg-type]
    ]
    verdict = overall(checks)
    assert verdict == "fail"
    numbers = of_gate(EXIT_CODES[verdict], checks)
    assert numbers["gate/exit_code"] == 1
    (dropped,) = (one for one in checks if one.verdict == "fail")
    assert numbers[f"gate/max-drop/{dropped.subject}/exit_code"] == 1
    assert numbers[f"gate/max-drop/{dropped.subject}/at_least"] == -0.02
    assert numbers[f"gate/max-drop/{dropped.subject}/gain"] == dropped.gain.value


def test_a_finished_training_tells_where_its_limit_was_broken() -> None:
    broken = {"step": 3, "probe_kl": 0.2, "probe_limit": 0.1, "restored_step": 2}
    assert of_training({"steps": 2, "probe_limit_broken": broken}) == {
        "finished/steps": 2.0, "finished/probe_limit_broken_step": 3.0,
        "finished/probe_limit_broken_probe_kl": 0.2, "finished/probe_limit_broken_restored_step": 2.0,
    }  # fmt: skip
    assert of_training({"steps": 4, "metrics": {"text": "x"}}) == {"finished/steps": 4.0}


def test_what_fails_is_said_and_the_others_get_their_numbers(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logged: list[dict[str, Any]] = []
    opened: list[dict[str, Any]] = []
    fake = SimpleNamespace(init=lambda **given: opened.append(given), log=logged.append, finish=lambda: print("talk"))
    monkeypatch.setitem(sys.modules, "trackio", fake)
    monkeypatch.setitem(sys.modules, "mlflow", None)  # not installed
    send(run, of_evaluation(read_results(run.results)))
    out, err = capsys.readouterr()
    assert out == ""
    assert "could not be sent to mlflow" in err
    assert "numbers were sent to trackio" in err
    assert (opened[0]["project"], opened[0]["name"], opened[0]["resume"]) == ("p", "n", "must")
    assert logged[0]["train/global_step"] == 4
    assert HOSTILE in run.samples.read_text(), "the run holds no text that could have been sent"
    assert all(isinstance(number, (int, float)) for number in logged[0].values())
    assert HOSTILE not in str(logged)


def test_a_run_without_trackers_sends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(whole_run(tmp_path / "run", 0.2))
    remember(folder, [SimpleNamespace()])
    assert not folder.trackers.exists()
    send(folder, {"a": 1.0})
    assert capsys.readouterr() == ("", "")
    assert TRACKERS == ("tensorboard", "trackio", "wandb", "mlflow")


KNOWN = {
    "wandb": {"id": "abc", "project": "rag", "entity": None, "mode": "offline", "dir": "/w"},
    "mlflow": {"run_id": "r1", "tracking_uri": "sqlite:////there/mlflow.db"},
}


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run that opened trackers, seen from a shell without their variables but one."""
    folder = RunFolder(tmp_path)
    folder.trackers.write_text(json.dumps(KNOWN))
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "MLFLOW_"))}
    monkeypatch.setattr(os, "environ", {**mine, "WANDB_MODE": "online"})
    return folder


def test_a_resumed_training_finds_its_runs_from_any_shell(begun: RunFolder) -> None:
    go_on(begun, SimpleNamespace(run_name=None), resumed=True)
    assert (os.environ["WANDB_RUN_ID"], os.environ["WANDB_PROJECT"]) == ("abc", "rag")
    assert (os.environ["MLFLOW_RUN_ID"], os.environ["MLFLOW_TRACKING_URI"]) == ("r1", "sqlite:////there/mlflow.db")
    assert "WANDB_ENTITY" not in os.environ
    assert os.environ["WANDB_MODE"] == "online", "the user's own variable wins"


def test_a_training_that_begins_anew_is_not_sent_to_the_runs_of_a_failed_attempt(begun: RunFolder) -> None:
    begun.create({}, resume=True)
    assert begun.trackers.is_file()
    begun.create({})
    assert not begun.trackers.is_file()


@pytest.mark.parametrize("disabled", [True, False])
def test_a_run_that_was_switched_off_is_not_opened_later(
    disabled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WandbCallback:
        pass

    opened = SimpleNamespace(id="abc", project="rag", entity="", offline=not disabled, disabled=disabled,
                             settings=SimpleNamespace(root_dir="w"))  # fmt: skip
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=opened))
    monkeypatch.chdir(tmp_path)
    remember(RunFolder(tmp_path), [WandbCallback()])
    assert RunFolder(tmp_path).trackers.is_file() is not disabled
    if not disabled:
        known = json.loads(RunFolder(tmp_path).trackers.read_text())["wandb"]
        assert (known["mode"], known["dir"]) == ("offline", str(tmp_path / "w")), "found from another folder"
