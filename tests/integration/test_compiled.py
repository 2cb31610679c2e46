"""Does a model under `torch.compile` keep the gradient of the trainer's step?"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from tests.integration.steps import SEQUENCES, TOLERANCE, oracle_step, run
from tests.oracles.step import relative_distance


@pytest.fixture
def compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_compiled_model_has_the_same_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a code generator behind it, which is not ours to test: what the tracer makes of the step is."""
    module = importlib.import_module("selfaug.objective.sweep")
    check_rows, traced = module.check_rows, []

    def recorded(*given: Any) -> None:
        traced.append(torch.compiler.is_compiling())
        check_rows(*given)

    monkeypatch.setattr(module, "check_rows", recorded)
    chosen = SEQUENCES["single-turn"][:2]
    settings = {"torch_compile": True, "torch_compile_backend": "eager"}
    ran = run(chosen, tmp_path, dtype=torch.float32, alpha=2.0, **settings)
    assert counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    assert traced
    assert not any(traced), "the tracer went into the sweep"
    loss, expected = oracle_step(chosen, dtype=torch.float32).gradient()
    assert relative_distance(ran.gradient, expected) < TOLERANCE[torch.float32]
    assert ran.losses == pytest.approx([loss], rel=1e-5)
