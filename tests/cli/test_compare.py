"""`selfaug compare`: killed, broken and mended it ends in the same table, and mistakes are told before any training."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from selfaug.cli import compare
from selfaug.cli.compare_study import shared_options, study_of
from selfaug.cli.config import read
from selfaug.cli.main import main
from tests.cli.conftest import ENVIRONMENT, Cli, study_files
from tests.models import save_tiny, tiny

SHORT = 60
"""Tokens that all rows fit but one."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def words(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    rows, texts = study_files(folder, 12, 20)
    return [
        "--methods", "selfaug", "dft", "--seeds", "1", "--settings", "1", "--task_metric", "answer_nll",
        "--data", str(rows), "--general_data", str(texts), "--max_new_tokens", "4",
        "--model_name_or_path", str(model), "--dataset_name", str(rows), "--max_steps", "3",
        "--per_device_train_batch_size", "4", "--learning_rate", "0.02", "--report_to", "none", "--use_cpu", "true",
        "--save_steps", "1",
    ]  # fmt: skip


def in_forks(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Runs of a comparison go through the quick ``cli``; the list gets their commands."""
    commands: list[list[str]] = []

    def run(command: list[str], stdout: Any, **_: Any) -> SimpleNamespace:
        commands.append(command)
        result = cli(*command[3:])
        stdout.write(result.err)
        return SimpleNamespace(returncode=result.code)

    # Only the module's own: matplotlib, on its first day on a machine, starts programs too.
    monkeypatch.setattr("selfaug.study.run.subprocess", SimpleNamespace(run=run))
    return commands


def numbers(folder: Path) -> Any:
    found = json.loads((folder / "comparison.json").read_text())
    return {name: found[name] for name in ("worlds", "points", "curves", "says")}


@pytest.mark.nightly
def test_killed_broken_and_mended_it_gives_the_table_of_one_run(
    words: list[str], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, "-m", "selfaug", "compare", *words, "--output_dir", str(folder)],
        env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    checkpoint = folder / "runs" / "sft_learning_rate=0.02_seed=0" / "checkpoints" / "checkpoint-1"
    deadline = time.monotonic() + 300
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGSTOP)
    process.kill()  # alone: the run that it had begun is left behind
    process.wait()
    assert checkpoint.exists()
    assert main(["compare", *words, "--output_dir", str(folder)]) == 2
    assert "is going on" in capsys.readouterr().err
    os.killpg(process.pid, signal.SIGKILL)

    in_forks(cli, monkeypatch)
    blocked = folder / "runs" / "dft_power=1_seed=0"
    blocked.mkdir(parents=True)
    (blocked / "checkpoints").write_text("in the way")
    assert main(["compare", *words, "--output_dir", str(folder)]) == 1
    out, err = capsys.readouterr()
    assert "Failed: dft_power=1_seed=0" in out
    assert "| selfaug alpha=2 " in out
    assert re.search(r"^1 of 3: sft_learning_rate=0.02_seed=0; \d:\d\d:\d\d to go$", err, re.MULTILINE)
    results = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/results.json")}
    assert len(results) == 2

    (blocked / "checkpoints").unlink()
    assert main(["compare", *words, "--output_dir", str(folder)]) == 0
    assert "3 of 3: dft_power=1_seed=0\n" in capsys.readouterr().err
    assert all(path.stat().st_mtime_ns == before for path, before in results.items())
    assert main(["compare", *words, "--output_dir", str(whole)]) == 0
    assert numbers(folder) == numbers(whole)
    assert {point["setting"] for point in numbers(whole)["points"]} == {
        "sft learning_rate=0.02", "selfaug alpha=2", "dft power=1"
    }  # fmt: skip
    capsys.readouterr()
    assert main(["compare", *words, "--max_steps", "4", "--output_dir", str(folder)]) == 2
    assert "runs of two are not mixed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("--methods", "selfagu"), "Did you mean 'selfaug'"),
        (("--methods", "replay"), "replay_data"),
        (("--methods", "selfaug", "--strengths", "selfaug=much"), "'much' of selfaug is no number"),
        (("--strengths", "selfaug"), "not of the form"),
        (("--strengths", "selfag=2"), "Did you mean 'selfaug'"),
        (("--options", "replay.replay_data=x"), "none of the methods"),
        (("--seeds", "0"), "seeds=0"),
        (("--settings", "0"), "settings=0"),
        (("--data", "./none.jsonl"), "data './none.jsonl' does not exist"),
        (("--grid", "dataset_name=./none,./near"), "none' does not exist"),
        (("--dataset_name", "./none.jsonl"), "none.jsonl' does not exist"),
        (("--grid", "model_name_or_path=./none"), "none' does not exist"),
        (("--grid", "dataset_name=a/x/y.jsonl,b/x/y.jsonl"), "one folder"),
        (("--shift", "true", "--data", "a.jsonl", "b.jsonl"), "data names 2"),
        (("--alpha", "1"), "varies itself"),
        (("--learning_rat", "1"), "--learning_rat"),
        (("--grid", "align_fraction=2"), "align_fraction"),
        (("--grid", "alpha=1,2"), "varies itself"),
        (("--methods", "sft", "--grid", "learning_rate=0.1,0.2"), "the curve of sft runs over"),
        (("--name", "a/b"), "name='a/b'"),
    ],
)
def test_mistakes_are_told_before_any_training(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, ...], says: str
) -> None:
    assert main(["compare", *words, *change, "--output_dir", str(tmp_path / "none")]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert "hint:" in err
    assert not (tmp_path / "none").exists()


RECIPES = sorted((Path(__file__).parents[2] / "configs" / "studies").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_names_runs_that_can_be_trained(
    words: list[str], recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("near", "far"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    place = words.index("--task_metric")  # before it stand the methods, which the recipe names
    call = read(compare.COMMAND, ["--config", str(recipe), "--output_dir", "mine", *words[place:]])
    study = study_of(call.settings, compare.train_words(call))
    compare._check(study)
    assert len(study.points()) > 2
    runs = {run.name: run.train for run in study.runs()}
    assert len(set(runs.values())) == len(runs)  # a name is one training
    assert all(runs[run.name] == run.train for run in study.runs())
    assert call.settings.name == recipe.stem


@pytest.mark.nightly
def test_comparisons_in_one_folder_share_their_runs(
    words: list[str], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = in_forks(cli, monkeypatch)
    place = words.index("--seeds")
    both = ["compare", "--methods", "selfaug", *words[place:], "--output_dir", str(tmp_path / "mine")]
    assert main(both) == 0
    assert len(commands) == 4  # two trainings, each measured
    table = (tmp_path / "mine" / "comparison.md").read_text()
    grid = ["--grid", "align_boundary=false,true", "align_direction=base_to_tuned", "--name", "boundary"]
    assert main([*both, *grid]) == 0
    more = [(command[3], Path(command[command.index("--output_dir") + 1]).name)
            for command in commands[4:] if command[3] == "train"]  # fmt: skip
    assert more == [("train", "selfaug_align_boundary=true_alpha=2_seed=0")]
    assert len(commands) == 6
    assert (tmp_path / "mine" / "comparison.md").read_text() == table
    found = json.loads((tmp_path / "mine" / "boundary.json").read_text())
    assert [point["runs"] for point in found["points"]] == [
        ["sft_learning_rate=0.02_seed=0"], ["selfaug_alpha=2_seed=0"], ["selfaug_align_boundary=true_alpha=2_seed=0"]
    ]  # fmt: skip
    assert (tmp_path / "mine" / "boundary.svg").exists()
    capsys.readouterr()


@pytest.mark.nightly
def test_runs_of_other_lengths_are_measured_on_the_same_rows(
    words: list[str], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = in_forks(cli, monkeypatch)
    rows = [json.loads(line) for line in Path(words[words.index("--data") + 1]).read_text().splitlines()]
    rows[0]["question"] = " ".join(f"w{i % 90 + 3}" for i in range(40))  # does not fit the short length
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    place = words.index("--seeds")
    command = ["compare", "--methods", "selfaug", *words[place:], "--data", str(tmp_path / "long.jsonl")]
    command += ["--max_length", "512", "--output_dir", str(tmp_path / "mine")]
    grid = ["--grid", f"max_length={SHORT},512", "--shift", "true"]
    assert main([*command, *grid]) == 0, capsys.readouterr().err
    measured = {(words[3], Path(words[4]).name): words for words in commands if words[3] in ("evaluate", "shift")}
    for verb in ("evaluate", "shift"):
        assert "--max_length" not in measured[verb, "selfaug_alpha=2_seed=0"]
        short = measured[verb, f"selfaug_max_length={SHORT}_alpha=2_seed=0"]
        assert short[short.index("--max_length") + 1] == "512"
    sources = [json.loads(path.read_text())["sources"] for path in (tmp_path / "mine").glob("runs/*/shift.json")]
    assert [source["data"]["measured"] for source in sources] == [12, 12, 12]
    capsys.readouterr()
    assert main([*command, *grid, "--max_length", "none"]) == 2
    assert "pass --max_length N" in capsys.readouterr().err


def test_what_a_preset_will_set_is_not_taken_for_the_default() -> None:
    values = {"align_boundary": None, "max_steps": 3}
    names = ["align_boundary", "max_steps", "unheard_of"]
    assert shared_options({**values, "preset": "default"}, names) == {"align_boundary": False, "max_steps": 3}
    assert shared_options({**values, "preset": "paper"}, names) == {"max_steps": 3}


def test_nothing_general_is_refused(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fewer = list(words)
    place = fewer.index("--general_data")
    del fewer[place : place + 2]
    assert main(["compare", *fewer, "--output_dir", str(tmp_path / "none")]) == 2
    assert "nothing general is measured" in capsys.readouterr().err


def test_a_shipped_model_is_the_same_run_under_its_short_name(words: list[str]) -> None:
    place = words.index("--model_name_or_path")
    call = read(compare.COMMAND, [*words[: place + 1], "lab", *words[place + 2 :], "--output_dir", "mine"])
    settings = dataclasses.replace(call.settings, grid={"model_name_or_path": ["lab:small", "lab"]})
    runs = study_of(settings, compare.train_words(call)).runs()
    assert [run.name for run in runs if run.setting.method == "sft"] == [
        "sft_model_name_or_path=lab-small_learning_rate=0.02_seed=0", "sft_learning_rate=0.02_seed=0"
    ]  # fmt: skip


def test_what_a_seed_holds_out_is_no_common_ground(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = list(words)
    place = fewer.index("--data")
    del fewer[place : place + 2]
    more = ["--held_out", "0.3", "--seeds", "2", "--output_dir", str(tmp_path / "none")]
    assert main(["compare", *fewer, *more]) == 2
    assert "held_out draws other rows with each seed" in capsys.readouterr().err


@pytest.mark.nightly
def test_worlds_have_a_base_and_a_yardstick_of_their_own_and_shift_comes_later(
    words: list[str], model: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    commands = in_forks(cli, monkeypatch)
    other = save_tiny(tmp_path / "other", tiny("llama", seed=1))
    place = words.index("--seeds")
    one = ["compare", "--methods", "selfaug", *words[place:], "--output_dir", str(tmp_path / "mine")]
    assert main(one) == 0
    assert [command[3] for command in commands] == ["train", "evaluate"] * 2
    commands.clear()
    both = [*one, "--grid", f"model_name_or_path={model},{other}", "--shift", "true", "--name", "size"]
    assert main(both) == 0
    # What was there is neither trained nor evaluated again: its shift alone is measured.
    assert [command[3] for command in commands] == ["shift", "train", "evaluate", "shift"] * 2
    found = json.loads((tmp_path / "mine" / "size.json").read_text())
    names = [f"model_name_or_path={'/'.join(str(path).split('/')[-2:])}" for path in (model, other)]
    assert [world["world"] for world in found["worlds"]] == names
    bases = [world["base"] for world in found["worlds"]]
    assert bases[0] != bases[1]
    first = numbers(tmp_path / "mine")["worlds"][0]
    setting = first["lora"].pop("setting").replace("sft", f"sft {names[0]}")
    assert found["worlds"][0] == {**first, "world": names[0], "lora": {**first["lora"], "setting": setting}}
    for world in names:
        ends = [p for p in found["points"] if p["world"] == world and p["setting"].startswith("sft")]
        assert [(p["task"], p["retention"]) for p in ends] == [(1.0, 0.0)]
        assert all(p["setting"].split()[1] == world for p in found["points"] if p["world"] == world)
    shifts = {p["setting"]: p["shift"][0] for p in found["points"]}
    assert len(set(shifts.values())) == 4
    assert all(shift > 0 for shift in shifts.values())
    written = json.loads((tmp_path / "mine" / "runs" / "selfaug_alpha=2_seed=0" / "shift.json").read_text())
    value = written["checkpoints"][-1]["totals"]["prompt"]["base_to_tuned"]["value"]
    assert shifts[f"selfaug {names[0]} alpha=2"] == value
    table = (tmp_path / "mine" / "size.md").read_text()
    assert f"{names[1]}: Base: task" in table
    assert "| shift" in table
    commands.clear()
    assert main(both) == 0
    assert not commands
    assert main(one) == 0
    assert not commands
    capsys.readouterr()


def test_strengths_are_added_until_the_best_lies_inside_or_the_number_is_reached(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[float]] = []
    shown: list[Any] = []
    ends = [{"selfaug": "highest"}, {"selfaug": "highest"}, {}, {}]

    def run_all(study: Any, *_: Any, **__: Any) -> list[Any]:
        ran.append(study.values("selfaug"))
        return []

    monkeypatch.setattr("selfaug.study.run.run_all", run_all)
    monkeypatch.setattr("selfaug.cli.compare_shown.edges", lambda study, folder: ends[len(ran) - 1])
    monkeypatch.setattr("selfaug.cli.compare_shown.show", lambda study, *_, **more: shown.append((study, more)))
    start = ["compare", *words, "--settings", "2", "--output_dir", str(tmp_path / "mine")]
    assert main([*start, "--widen", "5"]) == 0
    assert ran == [[2.0, 8.0], [2.0, 8.0, 32.0], [2.0, 8.0, 32.0, 128.0]]
    assert shown[0][0].values("selfaug") == ran[-1]
    assert shown[0][1] == {"other_losses": ["dft"]}  # which learns likely tokens more
    assert "further strengths: selfaug alpha=32" in capsys.readouterr().err
    for number, expected in (("1", 2), ("0", 1)):
        ran.clear()
        assert main([*start, "--widen", number]) == 0
        assert len(ran) == expected
