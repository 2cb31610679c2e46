"""Do public functions take a path as text as well as a `Path`, with the same outcome?"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

from selfaug.common.fingerprint import file_hash
from selfaug.common.store import Store
from selfaug.common.weights import weight_files
from selfaug.evaluation.results import read_results, read_samples, write_results
from selfaug.report.training import read_log
from selfaug.run.folder import RunFolder
from selfaug.run.manifest import read_manifest
from tests.made_runs import whole_run

PUBLIC = [
    "selfaug",
    "selfaug.evaluation.results",
    "selfaug.common.store",
    "selfaug.run.manifest",
    "selfaug.run.checkpoint",
]


def test_a_run_is_read_by_a_text(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    text = str(run)
    results = read_results(f"{text}/results.json")
    assert results == read_results(run / "results.json")
    assert list(read_samples(f"{text}/samples.jsonl")) == list(read_samples(run / "samples.jsonl"))
    assert read_manifest(f"{text}/manifest.json") == read_manifest(run / "manifest.json")
    assert read_log(f"{text}/log.jsonl") == read_log(run / "log.jsonl")
    assert file_hash(f"{text}/results.json") == file_hash(run / "results.json")
    assert weight_files(text) == weight_files(run)
    assert RunFolder(text).config == RunFolder(run).config  # type: ignore[arg-type]
    write_results(f"{text}/again.json", results)
    assert (run / "again.json").read_bytes() == (run / "results.json").read_bytes()
    store = Store(f"{text}/store")
    store.put("a", "sha256:1", [1])
    assert Store(run / "store").get("a", "sha256:1") == [1]


@pytest.mark.parametrize("name", PUBLIC)
def test_no_public_function_asks_for_a_path_alone(name: str) -> None:
    module = importlib.import_module(name)
    given = {"seal", "unseal", "rotate"}  # called with what their module made
    for public in sorted(set(module.__all__) - given):
        found = getattr(module, public)
        if callable(found):
            for parameter in inspect.signature(found).parameters.values():
                assert str(parameter.annotation) != "Path", f"{name}.{public}({parameter.name})"
