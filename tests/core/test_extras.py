"""Tests of the package with parts of its extras: what is missing is really absent from the interpreter's path."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from selfaug.cli.main import EXTRAS, VERBS
from tests.models import save_tiny, tiny
from tests.runs import finished_run

ROOT = Path(__file__).parents[2]
SAYS_WHAT_IT_HOLDS = "import importlib.util as u; print(*[n for n in {names!r}.split() if u.find_spec(n)])"


def needed(*extras: str) -> set[str]:
    """The distributions that the package and its extras bring, by name; no environment marker asks for another."""
    found: set[str] = set()
    left = [Requirement(f"selfaug[{','.join(extras)}]")]
    while left:
        requirement = left.pop()
        key = f"{requirement.name}[{','.join(sorted(requirement.extras))}]"
        if key in found:
            continue
        found.add(key)
        for text in importlib.metadata.requires(requirement.name) or []:
            inner = Requirement(text)
            marks = [{"extra": extra} for extra in requirement.extras] or [{"extra": ""}]
            if inner.marker is None or any(inner.marker.evaluate(mark) for mark in marks):
                left.append(inner)
    return {key.partition("[")[0] for key in found} - {"selfaug"}


def environment(folder: Path, distributions: set[str]) -> Path:
    """A folder of links to what these distributions have installed; alone on the path, it lacks all others."""
    for name in distributions:
        for file in importlib.metadata.files(name) or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(Path(str(file.locate())).parents[len(file.parts) - 1] / top)
    return folder


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("core"), needed() | {"pytest", "pluggy", "iniconfig", "pygments"})


@pytest.fixture(scope="module")
def without_eval(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("train"), needed("train"))


def python(packages: Path, code: str, *words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run code with the standard library, these packages and ours on the path, and nothing else."""
    start = f"import sys; sys.path += {[str(packages), str(ROOT / 'src'), str(ROOT)]!r}; "
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    variables.pop("PYTHONPATH", None)
    done = [sys.executable, "-I", "-S", "-c", start + code, *words]
    return subprocess.run(done, capture_output=True, text=True, env=variables, cwd=folder or packages)


def selfaug(packages: Path, *words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return python(packages, "from selfaug.cli.main import main; sys.exit(main(sys.argv[1:]))", *words, folder=folder)


def test_the_core_alone_lacks_what_the_extras_bring(core: Path, without_eval: Path) -> None:
    names = " ".join(sorted({name for extra in EXTRAS.values() for name in extra} | {"torch", "peft", "transformers"}))
    there = set(python(core, SAYS_WHAT_IT_HOLDS.format(names=names)).stdout.split())
    assert {"torch", "peft", "transformers"} <= there
    assert not there & {"trl", "datasets", "scipy", "lm_eval", "matplotlib"}
    there = set(python(without_eval, SAYS_WHAT_IT_HOLDS.format(names=names)).stdout.split())
    assert {"trl", "datasets"} <= there
    assert not there & {"lm_eval", "matplotlib"}


def test_every_extra_is_declared_with_what_a_verb_looks_for() -> None:
    modules = importlib.metadata.packages_distributions()
    for extra, names in EXTRAS.items():
        brought = {re.sub(r"[-_.]+", "-", name).lower() for name in needed(extra)}
        for name in names:
            assert {re.sub(r"[-_.]+", "-", found).lower() for found in modules[name]} & brought, (extra, name)


@pytest.mark.parametrize("verb", [name for name, verb in VERBS.items() if verb.extras])
def test_a_verb_without_its_extra_says_which_to_install(verb: str, core: Path) -> None:
    done = selfaug(core, verb, "somewhere")
    assert done.returncode == 2, done.stderr
    error, _, hint = done.stderr.strip().split("\n")
    assert error.startswith(f"error: `selfaug {verb}` needs packages that are not installed: ")
    assert hint == f"hint: pip install 'selfaug[{','.join(VERBS[verb].extras)}]' (or selfaug[all], for every verb)."


@pytest.mark.parametrize(
    ("which", "least"),
    [("oracle and stock or page or resumed or dense", 5), pytest.param("", 20, marks=pytest.mark.nightly)],
)
def test_the_core_trains_in_a_stock_trainer_without_trl_and_datasets(core: Path, which: str, least: int) -> None:
    code = (
        "import importlib.util as u; assert not u.find_spec('trl') and not u.find_spec('datasets'); import pytest; "
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-o', 'addopts=', '-o', 'timeout=', *sys.argv[1:]]))"
    )
    done = python(core, code, "-k", which, "tests/core/test_attach.py", "tests/unit/test_functional.py", folder=ROOT)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) >= least  # type: ignore[union-attr]


def test_the_core_is_used_without_the_command_lines_packages(core: Path) -> None:
    code = (
        "import selfaug, torch; assert callable(selfaug.attach) and callable(selfaug.prompt_kl)\n"
        "try: selfaug.SelfAugTrainer\n"
        "except ImportError as error: print(error)"
    )
    done = python(core, code)
    assert done.stdout == "selfaug.SelfAugTrainer needs datasets: pip install 'selfaug[train]'\n", done.stderr


@pytest.mark.nightly
def test_general_tasks_without_lm_eval_are_refused_before_a_model_is_loaded(without_eval: Path, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", tiny("llama"))
    run = finished_run(tmp_path / "run", model)
    done = selfaug(without_eval, "evaluate", str(run.path), "--general", "quick", folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "hint: install it: pip install 'selfaug[eval]'." in done.stderr
    assert "loading the model" not in done.stderr
