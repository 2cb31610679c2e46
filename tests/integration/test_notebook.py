"""Does the notebook run from its passages to its gate with the lab's model, and are its commands those of the verbs?"""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from selfaug.cli.config import read
from selfaug.cli.main import VERBS
from selfaug.evaluation.results import read_results
from tests.cli.conftest import ENVIRONMENT

FILE = Path(__file__).resolve().parents[2] / "examples/own_documents.ipynb"
CELLS = json.loads(FILE.read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def test_it_is_stored_without_outputs_installs_first_and_links_to_pages() -> None:
    for cell in CELLS:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
        for target in re.findall(r"\]\(([^)\s]+)\)", "".join(cell["source"])):
            assert (FILE.parent / target).exists(), target
    assert "%pip install" in CODE[0]
    assert not any("%pip" in text for text in CODE[1:])


def test_its_commands_are_read_by_their_verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {}
    commands = []
    for text in CODE[1:]:
        lines = [line for line in text.split("\n") if line.startswith("SAME =") or text == CODE[1]]
        exec("\n".join(lines), known)
        commands += [shlex.split(line.format_map(known)) for line in re.findall(r"^!selfaug (.*)$", text, re.M)]
    verbs = ["prepare", "train", "train", "evaluate", "evaluate", "report", "gate", "gate"]
    assert [words[0] for words in commands] == verbs
    for verb, *words in commands:
        command = importlib.import_module(VERBS[verb].module).COMMAND
        read(command, words[: words.index("||")] if "||" in words else words)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_it_runs_to_the_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []

    def shell(line: str) -> None:
        line = re.sub(r"^selfaug ", f"{shlex.quote(sys.executable)} -m selfaug ", line)
        done = subprocess.run(line, shell=True, capture_output=True, text=True, env=ENVIRONMENT)
        assert done.returncode == 0, (line, done.stderr[-3000:])
        said.append(done.stdout + done.stderr)

    shown: list[Any] = []
    module = ModuleType("IPython.display")
    module.__dict__["HTML"] = shown.append
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    known: dict[str, Any] = {"shell": shell}
    for text in CODE[1:]:
        text = text.replace("ROWS = 1600", "ROWS = 120").replace("ITEMS = 60", "ITEMS = 4")
        exec(re.sub(r"^!(.*)$", r'shell(f"""\1""")', text, flags=re.M), known)
    assert known["ROWS"] == 120
    trained = [json.loads(line) for line in Path("data/train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert 90 < len(trained) < 120
    assert all(len(row["documents"]) == 4 for row in trained)
    results = {name: read_results(Path("runs") / name / "results.json") for name in ("lora", "selfaug")}
    assert [one["run"]["method"] for one in results.values()] == ["sft", "selfaug"]
    for one in results.values():
        assert sum(part.startswith("general:lab_") for part in one["parts"]) == 7
    (page,) = shown
    assert page.startswith("<iframe srcdoc=")
    assert Path("page.html").stat().st_size > 10_000
    assert sum("gate" in text or "limit" in text for text in said[-2:]) == 2
