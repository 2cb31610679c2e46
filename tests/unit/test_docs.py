"""Is what the documentation says still what the code does?"""

from __future__ import annotations

import argparse
import ast
import builtins
import dataclasses
import functools
import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

import selfaug
from selfaug.cli import parsing
from selfaug.cli.config import options_of
from selfaug.cli.launch import LaunchFlags
from selfaug.cli.main import VERBS
from selfaug.cli.parsing import parse
from selfaug.data.prompts import Renderer
from selfaug.data.rag_template import RAG_TEMPLATE
from selfaug.data.record import Document, Record
from tests.docs_tables import ROOT, TABLES, between

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks/README.md"])


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def commands(text: str) -> list[list[str]]:
    """Words of the commands of `selfaug` in the page's blocks, without comments and what the shell does with them."""
    found: list[str] = []
    for language, block in re.findall(r"^```([^\n]*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        if language not in ("", "bash"):
            continue
        found += re.findall(r"^\s*(?:\w+=\S+ )*(?:bin/)?selfaug ([a-z].*)", block.replace("\\\n", " "), re.MULTILINE)
    return [shlex.split(re.split(r"\s(?:>>|\|\|?|&&)\s", line)[0], comments=True) for line in found]


@functools.cache
def flags(verb: str, part: str) -> frozenset[str]:
    """Every flag that a verb takes, or its part; of other verbs those that it hands on."""
    command = importlib.import_module(VERBS[verb].module).COMMAND
    command = next((each for each in command.parts if each.name == f"{verb} {part}"), command)
    names = set(options_of(*command.kinds))
    if command.reads_itself or command.takes_others:
        names |= {*parsing.options(), *LaunchFlags().names()}
    switches = {f"no_{one}" for one, option in options_of(*command.kinds).items() if option.is_switch}
    return frozenset({*names, *switches, "config", "help", "help_all", "verbose"})


@pytest.mark.parametrize("table", list(TABLES))
def test_tables_are_made_from_the_code(table: str) -> None:
    page, make = TABLES[table]
    written = between(table, page.read_text(encoding="utf-8")).group(1)
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


def test_the_prompt_settings_of_the_page_are_read_and_used(tmp_path: Path) -> None:
    page = (ROOT / "docs/prompt.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- prompt:begin -->\n```yaml\n(.*?)```", page, re.S)
    assert block is not None
    file = tmp_path / "settings.yaml"
    file.write_text(f"dataset_name: data.jsonl\n{block[1]}", encoding="utf-8")
    settings = parse(["--config", str(file)]).values["prompt"]
    renderer = Renderer(**settings)
    asked = Record("Who?", (Document("Ada did.", "A", score=1.0), Document("Bo did.", score=2.0)), ("Ada",))
    text = "\n".join(message["content"] for message in renderer.messages(asked, asked.documents))
    assert [
        text.index(part) for part in ("Answer from the documents alone.", "Question: Who?", "[1] A", "[2]\nBo")
    ] == (
        sorted(text.index(part) for part in ("Answer from the documents alone.", "Question: Who?", "[1] A", "[2]\nBo"))
    )
    assert text.count("Question: Who?") == 2
    assert renderer.abstention == "The documents do not say."
    flag = re.search(r"`--prompt '(\{.*?\})'`", page)
    assert flag is not None
    Renderer(**json.loads(flag[1]))
    named = set(
        re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", page.partition("<!-- prompt:end")[2], re.M)))
    )
    assert {name for name in named if name in {field.name for field in dataclasses.fields(Renderer)}} >= {
        "mode", "system", "abstention", "order", "question_position", "question", "answer_cue", "keep_specials",
    }  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_have_known_verbs_and_options(page: Path) -> None:
    for verb, *words in commands(page.read_text(encoding="utf-8")):
        assert verb in VERBS, verb
        for word in words:
            if word.startswith("--"):
                known = flags(verb, words[0])
                assert word[2:].partition("=")[0].replace("-", "_") in known, f"selfaug {verb} has no option {word}"


def test_the_pages_have_commands_to_look_at() -> None:
    found = [words for page in PAGES for words in commands(page.read_text(encoding="utf-8"))]
    assert {words[0] for words in found} >= {*VERBS} - {"relate"}
    assert sum(word.startswith("--") for words in found for word in words) > 200


def test_the_command_of_vllm_has_the_flags_that_it_documents() -> None:
    """vLLM is not installed: these are its `entrypoints/openai/cli_args.py` and `config/lora.py` of 2026."""
    vllm = argparse.ArgumentParser(exit_on_error=False)
    vllm.add_argument("model")
    vllm.add_argument("--enable-lora", action="store_true")
    vllm.add_argument("--max-lora-rank", type=int, choices=(1, 8, 16, 32, 64, 128, 256, 320, 512))
    vllm.add_argument("--lora-modules", nargs="+")
    vllm.add_argument("--chat-template")
    page = (ROOT / "docs/serving.md").read_text(encoding="utf-8").replace("\\\n", " ")
    served = [shlex.split(line) for line in re.findall(r"^vllm serve (.*)$", page, re.M)]
    assert len(served) == 1
    given = vllm.parse_args(served[0])
    assert given.enable_lora
    (module,) = given.lora_modules
    _, equals, folder = module.partition("=")
    assert equals
    assert given.chat_template == f"{folder}/{RAG_TEMPLATE}"
    with pytest.raises(argparse.ArgumentError):
        vllm.parse_args(["BASE", "--max-lora-rank", "24"])


def test_public_names_are_there() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"\bselfaug\.(\w+)\(", pages))
    assert "render" in named, "the documentation names nothing to look for"
    for one in named | set(selfaug.__all__):
        assert getattr(selfaug, one), one


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_examples_use_only_what_they_import_or_make(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        tree = ast.parse(block)
        known: set[str] = set(dir(builtins))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
                known |= {alias.asname or alias.name for alias in node.names}
            elif isinstance(node, ast.Import):
                known |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        known |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
        known |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        assert {node.id for node in names} <= known, f"{page.name}: {sorted({node.id for node in names} - known)}"
