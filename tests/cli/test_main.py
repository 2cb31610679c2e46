from __future__ import annotations

import importlib.util
import subprocess
import sys
import types
from dataclasses import dataclass

import pytest

from selfaug import __version__
from selfaug.cli import main as entry
from selfaug.cli.config import Command
from selfaug.common.errors import ConfigError

from .conftest import ENVIRONMENT, Cli


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, timeout=120)


def test_help_lists_every_verb_without_importing_torch() -> None:
    done = python(
        "import sys\nfrom selfaug.cli.main import main\nassert main(['--help']) == 0\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets'} & set(sys.modules)\nassert not heavy, heavy"
    )
    assert done.returncode == 0, done.stderr
    for verb in entry.VERBS:
        assert f"\n    {verb} " in done.stdout


def test_the_backend_of_a_notebook_does_not_stop_a_picture() -> None:
    backend = "import os; os.environ['MPLBACKEND'] = 'nothing'; "
    assert python(f"{backend}import matplotlib").returncode != 0
    done = python(f"{backend}from selfaug.cli.main import main; main(['gate', 'nowhere']); import matplotlib")
    assert done.returncode == 0, done.stderr


def test_every_verb_of_the_table_has_its_module() -> None:
    for verb in entry.VERBS.values():
        assert importlib.util.find_spec(verb.module) is not None, verb.module


def test_version_and_module() -> None:
    words = [sys.executable, "-m", "selfaug", "--version"]
    done = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"selfaug {__version__}\n", "")


def test_unknown_verb_names_the_near_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["tarin"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: 'tarin' is not a verb of selfaug. Did you mean 'train'?\n\nhint: ")


def test_unknown_flag_of_a_verb_names_the_near_one(cli: Cli) -> None:
    result = cli("merge", "run", "--output_dir", "out", "--dtyp", "float32")
    assert result.code == 2
    assert "Did you mean '--dtype'?" in result.err
    assert "Traceback" not in result.err


def test_help_of_every_verb_goes_to_stdout(cli: Cli) -> None:
    for verb in ("train", "merge", "chat"):
        result = cli(verb, "--help")
        assert result.code == 0, result.err
        assert f"usage: selfaug {verb}" in result.out


@dataclass
class NoOptions:
    """Of a verb for a test."""


def fake_verb(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(_: object) -> int:
        raise error

    module = types.ModuleType("fake_verb")
    module.COMMAND = Command("fake", NoOptions, "For a test.", ())  # type: ignore[attr-defined]
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_verb", module)
    monkeypatch.setitem(entry.VERBS, "fake", entry.Verb("fake_verb", "for a test"))


def test_user_errors_are_two_paragraphs_without_colour(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_verb(monkeypatch, ConfigError("x is 1.", "make it 2."))
    assert entry.main(["fake"]) == 2
    assert capsys.readouterr().err == "error: x is 1.\n\nhint: make it 2.\n"


@pytest.mark.parametrize(("no_color", "coloured"), [(None, True), ("1", False)])
def test_colour_is_for_terminals_that_want_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_color: str | None, coloured: bool
) -> None:
    fake_verb(monkeypatch, ConfigError("x is 1.", "make it 2."))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    assert entry.main(["fake"]) == 2
    assert ("\033[" in capsys.readouterr().err) is coloured


def test_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_verb(monkeypatch, KeyboardInterrupt())
    assert entry.main(["fake"]) == 130


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_verb(monkeypatch, RuntimeError("ours"))
    with pytest.raises(RuntimeError, match="ours"):
        entry.main(["fake"])


def test_a_reader_that_goes_away_hears_nothing_more() -> None:
    code = (
        "import sys, types\nfrom selfaug.cli import main as entry\nfrom selfaug.common.terminal import emit\n"
        "from selfaug.cli.config import Command\n"
        "module = types.ModuleType('fake_verb')\n"
        "module.COMMAND = Command('fake', (), '', (), reads_itself=True)\n"
        "module.run = lambda args: [emit('x' * 999) for _ in range(999)] and 0\n"
        "sys.modules['fake_verb'] = module\nentry.VERBS['fake'] = entry.Verb('fake_verb', '')\n"
        "sys.exit(entry.main(['fake']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=120) == 141
    assert errors == ""
