"""What the wheel and the sdist hold: everything that the package reads, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from selfaug import __version__

ROOT = Path(__file__).resolve().parents[2]
BUILD = "from setuptools import build_meta as b; b.build_wheel('dist'); b.build_sdist('dist')"
LARGEST = 6 * 2**20  # bytes; the two models of the lab are 4.3 MB of it


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not in a checkout of git")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of both, built from a copy of what git tracks."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("copy")
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "dist"


def test_the_wheel_holds_the_files_of_the_package_and_no_others(built: Path, tracked: list[str]) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"selfaug-{__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {name.removeprefix("src/") for name in tracked if name.startswith("src/")}
    about = {name for name in names if name.startswith(f"selfaug-{__version__}.dist-info/")}
    assert names - about == package
    assert {"selfaug/py.typed", "selfaug/report/templates/report.html.j2", "selfaug/data/answer_forms.yaml"} <= names
    assert not [name for name in names if "test" in name.split("/")[0] or name.endswith((".pyc", ".bin"))]
    assert {name.rsplit("/")[-1] for name in about} >= {"METADATA", "RECORD", "entry_points.txt", "LICENSE"}
    assert wheel.stat().st_size < LARGEST


def test_the_sdist_can_be_built_and_carries_neither_tests_nor_data(built: Path, tracked: list[str]) -> None:
    (sdist,) = built.glob("*.tar.gz")
    top = f"selfaug-{__version__}/"
    with tarfile.open(sdist) as archive:
        names = {member.name.removeprefix(top) for member in archive.getmembers() if member.isfile()}
    assert {name for name in tracked if name.startswith("src/")} <= names
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names
    beside = {name for name in names if not name.startswith("src/")}
    assert beside == {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO", "setup.cfg"}
    assert sdist.stat().st_size < LARGEST
