"""`selfaug demo` from rows to page, on a model of the lab's making with few rows, and its mistakes."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from selfaug.cli import demo
from selfaug.cli.main import main
from selfaug.evaluation.results import read_results
from selfaug.lab.model import Making, make


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    make(folder, Making(size="small", steps=6, tokens=512, vocabulary=400, texts=300))
    return folder


@pytest.mark.nightly
def test_two_runs_a_table_three_prompts_and_a_page(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    general = ("--general", "lab", "--general_limit", 3, "--batch_size", 100)
    monkeypatch.setattr(demo, "LAB", replace(demo.LAB, train_rows=32, test_rows=6, general=general))
    folder = tmp_path / "shown"
    words = ["demo", "--model_name_or_path", str(model), "--output_dir", str(folder), "--documents", "2", "--seed", "3"]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert "RAG task, 2 documents" in shown.out
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    status = subprocess.run(
        ["git", "-C", tmp_path, "status", "--porcelain", "-uall"], check=True, capture_output=True, text=True
    )
    assert status.stdout == "", "the demo leaves files in a checkout that git does not ignore"
    assert "general, mean" in shown.out
    assert f"{folder}/report.html" in shown.out
    assert "$ selfaug train --method sft" in shown.err
    assert (folder / "report.html").read_text().lstrip().startswith("<!")
    picture = (folder / "demo.svg").read_text()
    for colour in ("#d55e00", "#0072b2"):  # a mark for the task, seven skills and their mean; and the legend's
        assert len(re.findall(rf"<use [^>]*fill: {colour}", picture)) == 9 + 1
    configs = {}
    for name, method in demo.METHODS.items():
        results = read_results(folder / name / "results.json")
        assert results["run"]["method"] == method
        assert sum(part.startswith("general:lab_") for part in results["parts"]) == 7
        assert results["parts"]["task"]["items"] == 6
        configs[name] = (folder / name / "config.yaml").read_text().splitlines()
    apart = {line.split(":")[0] for line in set(configs["lora"]) ^ set(configs["selfaug"])}
    assert apart == {"alpha", "method", "output_dir"}  # nothing else differs between the two
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert len(rows) == 32
    assert all(len(row["documents"]) == 2 for row in rows)
    assert main(words) == 2
    assert "holds a demo already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--documents", "21"), "documents=21"),
        (("--alpha", "0"), "alpha=0"),
        (("--model_name_or_path", "lab:huge"), "no model of the lab"),
        (("--model_name_or_path", "org/other"), "no model of the lab"),
    ],
)
def test_mistakes(
    words: tuple[str, ...], says: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--model_name_or_path", str(model), "--output_dir", str(tmp_path / "none"), *words]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert "hint:" in err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("more", [[], ["--overwrite_output_dir"]])
def test_a_folder_with_files_of_the_users_is_left_alone(
    more: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (".gitignore", "train.jsonl"):
        (tmp_path / name).write_text("mine")
    assert main(["demo", "--model_name_or_path", str(model), "--output_dir", str(tmp_path), *more]) == 2
    assert "holds no demo but other files (.gitignore, train.jsonl)" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {".gitignore": "mine", "train.jsonl": "mine"}


def test_weights_that_do_not_come_along_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("selfaug.lab.shipped.ASSETS", tmp_path / "assets")
    monkeypatch.chdir(tmp_path)  # a checkout may hold a demo in the default folder
    for verb in (["train", "--dataset_name", "x.jsonl"], ["demo"], ["prepare", "x.jsonl", "--check"]):
        assert main([*verb, "--model_name_or_path", "lab:small"]) == 2
        err = capsys.readouterr().err
        assert "do not come with this version" in err
        assert "selfaug lab make --size small" in err


def test_a_model_that_comes_along_is_found_by_its_name(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfaug.cli.parsing import parse

    monkeypatch.setattr("selfaug.lab.shipped.ASSETS", tmp_path)
    (tmp_path / "base").symlink_to(model)
    values = parse(["--model_name_or_path", "lab", "--dataset_name", "x", "--output_dir", str(tmp_path / "o")]).values
    assert values["model_name_or_path"] == str(model.resolve())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab").mkdir()  # a folder of that name goes first
    values = parse(["--model_name_or_path", "lab", "--dataset_name", "x", "--output_dir", str(tmp_path / "o")]).values
    assert values["model_name_or_path"] == str(tmp_path / "lab")


def test_what_was_lost_is_shown_with_its_prompt(tmp_path: Path) -> None:
    from selfaug.cli.demo_shown import answers_text

    def side(text: str, right: float) -> dict[str, object]:
        return {"response": text, "values": {"acc": right}}

    shared = {"id": "0", "base": side("The river of Asa is Belune.", 1.0)}
    lost = {
        **shared,
        "part": "general:lab_facts",
        "prompt": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWhat is the river of Asa?<|im_end|>\n",
    }
    task = {**shared, "part": "task", "question": "Who rules Korland?", "prompt": "..."}
    for name, right in (("lora", 0.0), ("selfaug", 1.0)):
        (tmp_path / name).mkdir()
        rows = [{**row, "tuned": side(f"by {name}", right)} for row in (task, lost)]
        (tmp_path / name / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = answers_text({name: tmp_path / name for name in ("lora", "selfaug")})
    assert "task: Who rules Korland?" in text
    assert "facts: user / What is the river of Asa?" in text
    assert text.count("by lora") == text.count("by selfaug") == 2


def test_a_demo_that_was_stopped_goes_on_with_its_own_settings_alone(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first run stands finished, the second has a checkpoint: neither is trained anew."""
    folder = tmp_path / "demo"
    trained: list[list[object]] = []

    def verb(name: str, words: list[object]) -> None:
        if name != "train":
            raise KeyboardInterrupt  # everything that this test is about has happened
        trained.append(words)
        run = demo.RunFolder(Path(str(words[words.index("--output_dir") + 1])))
        run.path.mkdir(parents=True, exist_ok=True)
        run.config.write_text("{}")
        if "sft" not in words and len(trained) == 2:
            raise KeyboardInterrupt
        run.adapter.mkdir()

    monkeypatch.setattr(demo, "_verb", verb)
    words = ["demo", "--model_name_or_path", str(model), "--output_dir", str(folder)]
    assert main(words) == 130
    assert [each[1] for each in trained] == ["sft", "selfaug"]
    assert all("--resume_from_checkpoint" not in each for each in trained)
    monkeypatch.setattr(demo.RunFolder, "has_checkpoint", lambda self: self.path.name == "selfaug")
    assert main([*words, "--seed", "1"]) == 2
    assert "holds a demo with other settings that was stopped" in capsys.readouterr().err
    assert main(words) == 130
    assert [each[1] for each in trained[2:]] == ["selfaug"]
    assert "--resume_from_checkpoint" in trained[2]
    assert main([*words, "--seed", "1", "--overwrite_output_dir"]) == 130
    assert [each[1] for each in trained[3:]] == ["sft", "selfaug"]
    assert "--resume_from_checkpoint" not in trained[3]
