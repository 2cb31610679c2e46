"""Is what the documentation says still what the code does?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from selfaug.cli.main import VERBS
from selfaug.cli.parsing import parse
from tests.docs_tables import ROOT, TABLES, between

PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks/README.md"]
)


@pytest.mark.parametrize("name", list(TABLES))
def test_tables_are_made_from_the_code(name: str) -> None:
    page, make = TABLES[name]
    written = between(name, page.read_text(encoding="utf-8")).group(1)
    assert written == make() + "\n", "run: python -m tests.docs_tables"


@pytest.mark.parametrize("recipe", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_read_by_train(recipe: Path) -> None:
    written = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    values = parse(["--config", str(recipe), "--dataset_name", "data.jsonl"]).values
    for key, value in written.items():
        read = values[key]
        expected = str(Path(value).resolve()) if key == "output_dir" else value
        assert read in (expected, [expected]), (key, read, value)


def test_the_papers_recipe_has_the_papers_settings() -> None:
    """Section 4 of the paper: the numbers stand here once more, on purpose."""
    values = parse(
        ["--config", str(ROOT / "configs/qwen2.5-7b_crag_paper.yaml"), "--dataset_name", "crag.jsonl"]
    ).values
    batch = values["per_device_train_batch_size"] * values["gradient_accumulation_steps"]
    assert (values["model_name_or_path"], values["num_train_epochs"], batch) == ("Qwen/Qwen2.5-7B-Instruct", 1, 16)
    assert (values["learning_rate"], values["lr_scheduler_type"]) == (5e-4, "cosine")
    assert (values["weight_decay"], values["warmup_steps"], values["preset"]) == (0.1, 0.05, "paper")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_use_known_verbs(page: Path) -> None:
    for verb in re.findall(r"^(?:bin/)?selfaug ([a-z]+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
        assert verb in VERBS, verb
