"""Earlier names of options work, typed and in a file, and say their present name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from selfaug.cli import parsing
from selfaug.cli.config import Command, options_of, read
from selfaug.common.errors import ConfigError
from selfaug.common.options import option

from .test_options import COMMANDS


@dataclass
class Made:
    """Options of which two were renamed."""

    weight: float = option(1.0, "Weight.", group="Made", earlier=("strength", "force"))
    quiet: bool = option(True, "Say less.", earlier=("silent",))


COMMAND = Command("made", Made, "Made for a test.", ("selfaug made",))


@pytest.mark.parametrize(
    ("words", "expected", "said"),
    [
        (["--weight", "3"], Made(weight=3.0), None),
        (["--strength", "3"], Made(weight=3.0), "--strength is now --weight"),
        (["--force=3"], Made(weight=3.0), "--force is now --weight"),
        (["--no_silent"], Made(quiet=False), "--no_silent is now --no_quiet"),
        (["--no-silent"], Made(quiet=False), "--no_silent is now --no_quiet"),
        (["--silent", "false"], Made(quiet=False), "--silent is now --quiet"),
    ],
)
def test_an_earlier_flag_works_and_says_the_present_one(
    words: list[str], expected: Made, said: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected != Made()
    assert read(COMMAND, words).settings == expected
    shown = capsys.readouterr().err
    assert shown == "" if said is None else f"{said}; the earlier name works until version 1.0." in shown


def test_an_earlier_key_of_a_file_works_and_both_names_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "made.yaml"
    file.write_text("strength: 3\n", encoding="utf-8")
    assert read(COMMAND, ["--config", str(file)]).settings == Made(weight=3.0)
    assert f"{file}: strength is now weight" in capsys.readouterr().err
    for both in ("strength: 3\nweight: 4\n", "force: 3\nstrength: 4\n"):
        file.write_text(both, encoding="utf-8")
        with pytest.raises(ConfigError, match="weight is given twice, once under an earlier name"):
            read(COMMAND, ["--config", str(file)])


def test_an_unknown_flag_is_refused_as_before() -> None:
    with pytest.raises(ConfigError, match="--weight"):
        read(COMMAND, ["--weigth", "3"])


def test_train_takes_earlier_names_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = parsing.options()
    assert "strength" not in known
    about: dict[str, Any] = {**known["alpha"].about, "earlier": ("strength",)}
    monkeypatch.setattr(
        parsing, "options", lambda: {**known, "alpha": dataclasses.replace(known["alpha"], about=about)}
    )
    assert parsing.parse(["--dataset_name", "d.jsonl", "--strength", "3"]).values["alpha"] == 3
    file = tmp_path / "train.yaml"
    file.write_text("dataset_name: d.jsonl\nstrength: 5\n", encoding="utf-8")
    assert parsing.parse(["--config", str(file)]).values["alpha"] == 5
    shown = capsys.readouterr().err
    assert "--strength is now --alpha" in shown
    assert "strength is now alpha" in shown


def test_no_earlier_name_is_that_of_another_option() -> None:
    for name, command in COMMANDS.items():
        options = parsing.options() if name == "train" else options_of(*command.kinds)
        earlier = [old for one in options.values() for old in one.about.get("earlier", ())]
        assert not set(earlier) & set(options), name
        assert len(earlier) == len(set(earlier)), name
