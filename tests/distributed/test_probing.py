"""Do two ranks share the items of the probe, agree on its numbers, and stop and go back together?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import test_writing

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.nightly]

SCRIPT = Path(__file__).with_name("probing.py")


def test_two_ranks_measure_what_one_would_and_go_back_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_writing, "SCRIPT", SCRIPT)
    test_writing.run(tmp_path / "one")
    test_writing.run(tmp_path / "two", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")

    def left(name: str, rank: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((tmp_path / name / f"rank{rank}.json").read_text())
        return found

    alone, first, second = left("one", 0), left("two", 0), left("two", 1)
    for mine, theirs in zip(first["watched"]["probes"], alone["watched"]["probes"], strict=True):
        assert mine[0] == theirs[0]
        # Each rank has a dropout of its own, so that the weights are not those of one rank.
        assert mine[1] == pytest.approx(theirs[1], rel=0.5)
    assert first["watched"]["probes"] == second["watched"]["probes"]
    assert first["watched"]["probes"][-1][1] > 1e-4
    for rank in (first, second):
        for kept in ("losses", "weights", "drawn"):
            assert rank["watched"][kept] == rank["unprobed"][kept], f"watching changed the {kept}"
    back = first["back"]["outcome"]
    assert back == second["back"]["outcome"]
    assert back["restored_step"] == back["step"] - 1
    assert first["back"]["weights"] == second["back"]["weights"] != first["watched"]["weights"]
