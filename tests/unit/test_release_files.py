"""Workflows, issue forms and the image file: do they parse, and do they keep what they promise?"""

from __future__ import annotations

import re
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
INDEX = "https://download.pytorch.org/whl/cpu"


def read(path: Path) -> dict[Any, Any]:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def jobs(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = read(path)["jobs"]
    return found


def test_there_are_workflows_for_tests_docs_and_publishing() -> None:
    assert [path.stem for path in WORKFLOWS] == ["docs", "publish", "tests"]
    assert FORMS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_each_step_does_one_thing_and_each_script_is_there(path: Path) -> None:
    for name, job in jobs(path).items():
        assert set(job.get("needs", "").split()) <= set(jobs(path)), name
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), step
            assert re.fullmatch(r"[\w-]+/[\w-]+@[\w./-]+", step.get("uses", "owner/name@v1"))
            script = step.get("run", "").split(" ")[0]
            if "/" in script and not script.startswith(".venv"):
                assert (ROOT / script).is_file(), script


@pytest.mark.parametrize("path", [path for path in WORKFLOWS if path.stem != "publish"], ids=lambda path: path.stem)
def test_torch_is_installed_from_the_index_of_cpu_builds_before_anything_asks_for_it(path: Path) -> None:
    env = read(path).get("env", {})
    installing = 0
    for name, job in jobs(path).items():
        runs = [
            step["run"].replace('"$TORCH_INDEX"', env.get("TORCH_INDEX", "")) for step in job["steps"] if "run" in step
        ]
        asks = [place for place, run in enumerate(runs) if re.search(r"\[(all|docs)\]|\.ci/run|bin/test", run)]
        gets = [place for place, run in enumerate(runs) if f"--index-url {INDEX} " in run and run.endswith(" torch")]
        assert not asks or (gets and gets[0] < asks[0]), name
        installing += bool(asks)
    assert installing


def test_only_the_publishing_job_may_ask_for_a_token_and_no_secret_is_kept() -> None:
    for path in WORKFLOWS:
        assert read(path)["permissions"] == {"contents": "read"}
        assert "secrets." not in path.read_text(encoding="utf-8")
        asking = [name for name, job in jobs(path).items() if job.get("permissions", {}).get("id-token") == "write"]
        assert asking == {"publish": ["publish"], "docs": ["deploy"], "tests": []}[path.stem]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_each_issue_form_has_what_a_form_needs(path: Path) -> None:
    form = read(path)
    assert {"name", "description", "body"} <= set(form)
    for field in form["body"]:
        assert field["type"] in ("textarea", "input", "dropdown", "checkboxes", "markdown")
        assert field["attributes"]["label"]
    assert len({field["id"] for field in form["body"]}) == len(form["body"])


def test_the_image_copies_what_is_there_and_runs_as_nobody_special() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[0] == "!"]
    copied = [name for words in lines if words[0] == "COPY" for name in words[1:-1]]
    assert copied
    for name in copied:
        assert (ROOT / name).exists(), name
        assert any(fnmatch(name, pattern) for pattern in kept), f"{name} is left out by .dockerignore"
    assert ["ARG", "BASE=ubuntu:24.04"] in lines
    assert [words[1] for words in lines if words[0] == "FROM"] == ["${BASE}"]
    assert [words[1] for words in lines if words[0] == "USER"][-1] not in ("root", "0")
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert re.search(r"^torch==", pins, re.M), "the image takes torch's version from there"


@pytest.mark.parametrize(
    ("linter", "words"),
    [("actionlint", [str(path) for path in WORKFLOWS]), ("hadolint", [str(ROOT / "Dockerfile")])],
    ids=["actionlint", "hadolint"],
)
def test_linters_have_nothing_to_say(linter: str, words: list[str]) -> None:
    found = shutil.which(linter)
    if found is None:
        pytest.skip(f"{linter} is not installed")
    done = subprocess.run([found, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
