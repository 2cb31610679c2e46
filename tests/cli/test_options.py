"""Every verb: each option is the same typed and in YAML, its help is a page with groups, defaults and examples."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfaug.cli.config import Call, Command, Option, options_of, read
from selfaug.cli.main import VERBS
from selfaug.cli.options import SHORT_HELP
from selfaug.common.errors import ConfigError
from selfaug.common.options import REQUIRED

from .conftest import ENVIRONMENT
from .first_words import HEAVY

STUDY = Path(__file__).parents[2] / "configs" / "studies" / "alpha.yaml"


def all_commands() -> dict[str, Command[Any]]:
    verbs = [importlib.import_module(verb.module).COMMAND for verb in VERBS.values()]
    return {command.name: command for verb in verbs for command in (verb, *verb.parts)}


COMMANDS = all_commands()
OWN = {name: command for name, command in COMMANDS.items() if not command.reads_itself and not command.parts}
CASES = [(name, option) for name, command in OWN.items() for option in options_of(command.options)]


def other_than(option: Option) -> Any:
    """A value that the option may have and has not by default."""
    if option.choices:
        return next(choice for choice in option.choices if choice != option.default)
    if option.elements is not None:
        return [0.375, 0.25] if option.elements is float else ["one=1", "two=2"]
    if option.is_switch:
        return not option.default
    return 7 if int in option.kinds else 0.375 if float in option.kinds else "some word"


def words_of(option: Option, value: Any, flag: str) -> list[str]:
    values = value if isinstance(value, list) else [value]
    words = [str(one).lower() if isinstance(one, bool) else str(one) for one in values]
    if option.about.get("positional"):
        return words
    return [word for one in words for word in (flag, one)] if option.about.get("repeated") else [flag, *words]


def required(command: Command[Any], but: str) -> dict[str, Any]:
    found = options_of(command.options)
    return {name: other_than(one) for name, one in found.items() if one.default is REQUIRED and name != but}


def from_file(command: Command[Any], folder: Path, keys: dict[str, Any], *words: str) -> Call[Any]:
    file = folder / "settings.yaml"
    file.write_text(yaml.safe_dump(keys), encoding="utf-8")
    return read(command, ["--config", str(file), *words])


@pytest.mark.parametrize(("name", "option"), CASES)
def test_an_option_is_the_same_typed_and_in_a_file_and_what_is_typed_wins(
    name: str, option: str, tmp_path: Path
) -> None:
    command = COMMANDS[name]
    one = options_of(command.options)[option]
    value, others = other_than(one), required(command, but=option)
    assert value != one.default
    expected = from_file(command, tmp_path, {**others, option: value})
    assert getattr(expected.settings, option) == value
    assert option in expected.given
    for flag in (f"--{option}", f"--{option.replace('_', '-')}"):
        typed = from_file(command, tmp_path, others, *words_of(one, value, flag))
        assert typed.settings == expected.settings
        assert option in typed.given
    other = [one.elements("0.5")] if one.elements is not None else value
    both = from_file(
        command,
        tmp_path,
        {**others, option: one.default if one.default is not REQUIRED else "a file's"},
        *words_of(one, other, f"--{option}"),
    )
    assert getattr(both.settings, option) == other
    if one.default is not REQUIRED:
        assert getattr(from_file(command, tmp_path, others).settings, option) == one.default
        assert option not in from_file(command, tmp_path, others).given


@pytest.mark.parametrize("name", OWN)
def test_an_unknown_key_or_flag_names_the_near_one(name: str, tmp_path: Path) -> None:
    command = COMMANDS[name]
    near = list(options_of(command.options))[-1]
    wrong = f"{near}z"
    needed = required(command, but=near)
    if command.takes_others:
        assert from_file(command, tmp_path, {**needed, wrong: 1}).keys == {wrong: 1}
        assert from_file(command, tmp_path, needed, f"--{wrong}", "1").words == [f"--{wrong}", "1"]
        return
    with pytest.raises(ConfigError) as refused:
        from_file(command, tmp_path, {**needed, wrong: 1})
    assert f"{wrong!r} is no option of `selfaug {name}`. Did you mean {near!r}?" in refused.value.message
    with pytest.raises(ConfigError) as refused:
        from_file(command, tmp_path, needed, f"--{wrong}", "1")
    assert f"Did you mean '--{near}'?" in refused.value.message


@pytest.mark.parametrize("name", [name for name in OWN if required(COMMANDS[name], but="")])
def test_what_lacks_is_said_with_the_command_as_it_should_be(name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(COMMANDS[name], [])
    lacking = next(iter(required(COMMANDS[name], but="")))
    assert refused.value.message == f"{lacking} is not given."
    assert f"selfaug {name} " in refused.value.hint


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"limit": "many"}, "limit is 'many'; expected a whole number"),
        ({"limit": 1.5}, "limit is 1.5; expected a whole number"),
        ({"limit": True}, "limit is True; expected a whole number"),
        ({"seed": None}, "seed is None; expected a whole number"),
        ({"json": "perhaps"}, "json is 'perhaps'; expected true or false"),
        ({"judge_timeout": [1]}, "judge_timeout is [1]; expected a number"),
        ({"dtype": "float23"}, "Did you mean 'float32'?"),
        ({"run": {"a": 1}}, "run is {'a': 1}; expected a text"),
    ],
)
def test_a_wrong_value_in_a_file_is_named(keys: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        from_file(COMMANDS["evaluate"], tmp_path, {"run": "r", **keys})
    assert says in refused.value.message
    assert str(tmp_path / "settings.yaml") in refused.value.message


def test_one_text_in_a_file_is_a_list_of_one_and_a_mapping_is_pairs(tmp_path: Path) -> None:
    call = from_file(COMMANDS["evaluate"], tmp_path, {"run": "r", "data": "a.jsonl", "map": {"question": "q"}})
    assert (call.settings.data, call.settings.map) == (["a.jsonl"], ["question=q"])
    grid = {"align_fraction": [1, 0.125]}
    call = from_file(COMMANDS["compare"], tmp_path, {"output_dir": "o", "methods": "sft", "grid": grid})
    assert (call.settings.methods, call.settings.grid) == (["sft"], grid)


@pytest.mark.parametrize(
    "words", [["--json", "runs/a"], ["runs/a", "--json"], ["--json", "true", "runs/a"], ["--json=true", "runs/a"]]
)
def test_a_bare_switch_does_not_swallow_the_run(words: list[str]) -> None:
    call = read(COMMANDS["gate"], words)
    assert (call.settings.run, call.settings.json) == ("runs/a", True)
    assert read(COMMANDS["gate"], ["--json", "false", "runs/a"]).settings.json is False
    assert read(COMMANDS["shift"], ["--no_layers", "runs/a"]).settings.layers is False


def test_a_word_that_has_no_place_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no place for 'runs/b'"):
        read(COMMANDS["gate"], ["runs/a", "runs/b"])
    with pytest.raises(ConfigError, match="Did you mean 'make'"):
        read(COMMANDS["lab"], ["mkae"])
    with pytest.raises(ConfigError, match="none is named"):
        read(COMMANDS["lab"], [])


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """What each verb's help prints in a process of its own, which has none of the heavy modules in."""
    code = (
        "import json, sys\nfrom selfaug.cli.main import main\ncode = main(sys.argv[1:])\n"
        f"print(json.dumps([code, sorted(set({HEAVY!r}) & set(sys.modules))]), file=sys.stderr)"
    )
    found = {}
    for name in COMMANDS:
        command = [sys.executable, "-c", code, *name.split(), "--help"]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**ENVIRONMENT, "COLUMNS": "100"}, check=True
        )
        assert json.loads(done.stderr) == [0, []], name
        found[name] = done.stdout
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_a_page_in_groups_with_two_examples_that_are_taken(
    name: str, pages: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfaug.cli.parsing import parse

    page = pages[name]
    assert page.startswith(f"usage: selfaug {name} ")
    titles = re.findall(r"^(\w.*):$", page, re.MULTILINE)
    assert titles[-2:] == ["Every command", "Examples"]
    assert len(titles) >= 3
    assert "options:" not in titles
    examples = [shlex.split(line) for line in page.partition("\nExamples:\n")[2].splitlines()]
    assert len(examples) >= 2
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.yaml").write_text("model_name_or_path: org/name\n")
    (tmp_path / "configs" / "studies").mkdir(parents=True)
    shutil.copy(STUDY, tmp_path / "configs" / "studies")
    for words in examples:
        assert words[: 1 + len(name.split())] == ["selfaug", *name.split()]
        call = read(importlib.import_module(VERBS[words[1]].module).COMMAND, words[2:])
        if call.command.reads_itself:
            assert parse(words[2:]).given, "an example that sets nothing"
        elif call.command.takes_others:
            from selfaug.cli.compare import train_words

            assert parse(train_words(call)).given >= {"model_name_or_path", "dataset_name"}


@pytest.mark.parametrize("name", [*OWN, "train", "cache"])
def test_help_says_the_defaults_of_the_data_class(name: str, pages: dict[str, str]) -> None:
    kinds = SHORT_HELP if COMMANDS[name].reads_itself else (COMMANDS[name].options,)
    blocks = {}
    for block in re.split(r"\n\n|\n(?=  \S)", pages[name]):
        found = re.match(r"  (?:--)?(\w+)", block)
        if found:
            blocks[found[1].lower()] = " ".join(block.split())
    said = 0
    for kind in kinds:
        made = kind(**required(COMMANDS[name], but="")) if name in OWN else kind()
        for field in dataclasses.fields(kind):
            default = getattr(made, field.name)
            shown_as = (
                field.metadata.get("metavar", field.name).lower() if field.metadata.get("positional") else field.name
            )
            block = blocks[shown_as]
            if field.default is REQUIRED and field.default_factory is REQUIRED:
                assert "(default:" not in block
                continue
            shown = field.metadata.get("shown")
            if shown is None and default in (None, [], ""):
                assert "(default:" not in block, block
                continue
            text = " ".join(map(str, default)) if isinstance(default, list) else str(default)
            text = text.lower() if isinstance(default, bool) else text
            assert block.endswith(f"(default: {shown or text})"), block
            said += 1
    assert said
