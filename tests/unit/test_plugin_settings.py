"""Tests of the settings of `attach` in a host's configuration."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import selfaug
from selfaug.common.errors import ConfigError
from selfaug.plugins.settings import settings_of


def test_every_setting_of_attach_is_read_and_nothing_else() -> None:
    named = {n: p.default for n, p in inspect.signature(selfaug.attach).parameters.items() if n != "trainer"}
    given = {f"selfaug_{name}": value for name, value in named.items()}
    set_ = {name: value for name, value in named.items() if value is not None}
    assert named.keys() - set_.keys() == {"alpha", "align_target"}, "of these, one or neither is given"
    assert settings_of({**given, "learning_rate": 1.0, "alpha": 3.0}) == set_
    assert settings_of({"selfaug_align_target": 0.05}) == {"align_target": 0.05}
    assert settings_of({"selfaug_alpha": 1, "selfaug_reference": None}) == {"alpha": 1}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"selfaug_alfa": 1.0}, "selfaug_alfa is not known. Did you mean 'selfaug_alpha'?"),
        ({"selfaug_alpha": "2e-1"}, "selfaug_alpha='2e-1' is of type str, where float is needed"),
        ({"selfaug_alpha": True}, "is of type bool"),
        ({"selfaug_check": 1}, "is of type int, where bool is needed"),
        ({"selfaug_reference_slice": True}, "is of type bool, where int is needed"),
        ({"selfaug_alpha": -1}, "is not a weight"),
        ({"selfaug_alpha": 1.0, "selfaug_align_target": 0.1}, "alpha=1.0 fixes the weight"),
        ({"selfaug_align_target": "5e-2"}, "is of type str, where float is needed"),
        ({"selfaug_align_fraction": 0.0}, "is not a share"),
        ({"selfaug_align_direction": "base"}, "is not known"),
    ],
)
def test_settings_that_attach_does_not_take_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        settings_of(given)
    assert said in str(refused.value)


def test_the_page_lists_every_key_with_its_default() -> None:
    page = (Path(__file__).parents[2] / "docs" / "hosts" / "axolotl.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(selfaug_\w+)` \| (\S+) \|", page, flags=re.MULTILINE))
    named = {n: p.default for n, p in inspect.signature(selfaug.attach).parameters.items() if n != "trainer"}
    assert {key: yaml.safe_load(value) for key, value in listed.items()} == {
        f"selfaug_{name}": default for name, default in named.items()
    }


def test_axolotl_is_told_of_every_key() -> None:
    """It drops keys without a word that no class of arguments names; importing the class needs axolotl."""
    source = Path(selfaug.__file__).with_name("plugins") / "axolotl.py"
    (kind,) = [
        node
        for node in ast.parse(source.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == "Arguments"
    ]
    told = {ast.unparse(node.target) for node in kind.body if isinstance(node, ast.AnnAssign)}
    named = {name for name in inspect.signature(selfaug.attach).parameters if name != "trainer"}
    assert told == {f"selfaug_{name}" for name in named}


def test_the_recipes_of_axolotl_differ_in_the_plugin_alone() -> None:
    folder = Path(__file__).parents[2] / "hosts" / "axolotl"
    lora, ours = (yaml.safe_load((folder / f"{name}.yaml").read_text("utf-8")) for name in ("lora", "selfaug"))
    added = {key: value for key, value in ours.items() if lora.get(key) != value}
    assert added.pop("output_dir") == "selfaug"
    assert added.pop("plugins") == ["selfaug.plugins.axolotl.Plugin"]
    assert settings_of(added) == {"alpha": 2.0, "align_fraction": 1.0}
    assert added.keys() == {"selfaug_alpha", "selfaug_align_fraction"}
    assert lora.keys() <= ours.keys()
