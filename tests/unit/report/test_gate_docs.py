"""Does the workflow of the documentation parse, and do its commands exist?"""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfaug.cli.config import Call, read
from selfaug.cli.main import VERBS
from selfaug.report.gate import parse_rule

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGE = (DOCS / "gate.md").read_text(encoding="utf-8")
GUIDE = (DOCS / "guides" / "ci.md").read_text(encoding="utf-8")


def commands(text: str) -> list[list[str]]:
    plain = text.replace("\\\n", " ")
    lines = [line.strip() for line in plain.splitlines() if re.match(r"\s*selfaug ", line)]
    return [shlex.split(re.split(r"\s(?:>>|\|\|)\s", line)[0], comments=True) for line in lines]


def arguments(words: list[str]) -> Call[Any]:
    return read(importlib.import_module(VERBS[words[1]].module).COMMAND, words[2:])


def workflow() -> dict:
    block = re.search(r"<!-- workflow:begin -->\n```yaml\n(.*?)```\n<!-- workflow:end -->", GUIDE, re.DOTALL)
    assert block is not None
    return yaml.safe_load(block[1])


def test_the_workflow_has_what_a_workflow_needs() -> None:
    found = workflow()
    # YAML 1.1 reads `on` as true; GitHub reads YAML 1.2.
    assert set(found) == {"name", True, "jobs"}
    assert "pull_request" in found[True]
    for job in found["jobs"].values():
        assert {"runs-on", "steps"} <= set(job)
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), step


def test_the_workflows_commands_are_taken_as_they_stand() -> None:
    runs = "\n".join(step["run"] for job in workflow()["jobs"].values() for step in job["steps"] if "run" in step)
    words = commands(runs)
    assert [word[1] for word in words] == ["evaluate", "report", "gate", "report"]
    gate = arguments(words[2]).settings
    assert gate.max_drop == ["general=2pt", "general:*=5pt"]
    for rule in (*gate.max_drop, *gate.min_gain):
        parse_rule("max-drop", rule)
    for one in words:
        arguments(one)


@pytest.mark.parametrize("words", commands(PAGE), ids=" ".join)
def test_every_command_on_the_page_is_taken(words: list[str]) -> None:
    found = arguments(words)
    assert found.command.name == words[1]


def test_the_page_quotes_its_own_arithmetic() -> None:
    missed = {n: 1 - 0.025 ** (1 / n) for n in (175, 180, 185, 200)}
    assert f"With 200 items that are all the same this share is {missed[200]:.1%}".replace("%", " %") in PAGE
    assert "about 180 items" in PAGE
    assert missed[175] > 0.02 > missed[185]
