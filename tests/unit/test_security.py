"""Does the source keep what SECURITY.md says it never does?"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "selfaug"
PICKLES = {"pickle", "dill", "cloudpickle", "joblib", "marshal"}
SAFE_LOADERS = {"yaml.SafeLoader", "loader or yaml.SafeLoader", "_Loader"}
"""Of these `_Loader` is a subclass of the safe one."""


def faults(code: str) -> Iterator[str]:
    """Yield what of a source text the page excludes."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names]
            module = getattr(node, "module", None)
            if PICKLES & {name.split(".")[0] for name in [*names, module or ""]}:
                yield "a module that reads pickles"
        if not isinstance(node, ast.Call):
            continue
        called, given = ast.unparse(node.func), {each.arg: ast.unparse(each.value) for each in node.keywords}
        if called == "torch.load" and given.get("weights_only") != "True":
            yield "torch.load without weights_only=True"
        if called in ("yaml.load", "yaml.load_all") and given.get("Loader") not in SAFE_LOADERS:
            yield "YAML with a loader that may make objects"
        if called in ("yaml.unsafe_load", "yaml.full_load", "eval", "exec", "os.system", "os.popen"):
            yield called
        if "True" in (given.get("trust_remote_code"), given.get("allow_pickle"), given.get("shell")):
            yield f"{called} with what must be asked for"


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda file: file.relative_to(SOURCE).as_posix())
def test_the_source_does_nothing_that_the_page_excludes(file: Path) -> None:
    assert list(faults(file.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from joblib import load", "torch.load(path)", "torch.load(path, weights_only=False)",
        "yaml.load(text, Loader=yaml.Loader)", "yaml.unsafe_load(text)", "eval(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)", "np.load(file, allow_pickle=True)",
        "subprocess.run(line, shell=True)",
    ],
)  # fmt: skip
def test_planted_faults_are_found(code: str) -> None:
    assert list(faults(code))


def test_the_loader_of_settings_makes_no_objects(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    from selfaug.cli.yaml_file import read_settings
    from selfaug.common.errors import ConfigError

    file = tmp_path / "settings.yaml"
    file.write_text("value: !!python/object/apply:os.getcwd []\n", encoding="utf-8")
    assert yaml.unsafe_load(file.read_text(encoding="utf-8"))["value"]  # another loader would run the function
    with pytest.raises(ConfigError):
        read_settings(file)
