"""Do two ranks share what the base is to write, and train on the rows that one process would have?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

SCRIPT = Path(__file__).with_name("writing.py")


def run(folder: Path, *launcher: str) -> None:
    folder.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    words = [sys.executable, *launcher, str(SCRIPT), str(folder)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def samples(folder: Path, rank: int) -> dict[str, str]:
    lines = (folder / "writing" / "generated" / f"samples-{rank}.jsonl").read_text().splitlines()
    found = {row["key"]: row["text"] for row in map(json.loads, lines)}
    assert len(found) == len(lines)
    return found


def left(folder: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"rank{rank}.json").read_text())
    return found


@pytest.mark.nightly
def test_two_ranks_write_what_one_would(tmp_path: Path) -> None:
    run(tmp_path / "one")
    run(tmp_path / "two", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    alone, first, second = left(tmp_path / "one", 0), left(tmp_path / "two", 0), left(tmp_path / "two", 1)
    assert len(alone["rows"]) == 22
    assert first["rows"] == second["rows"] == alone["rows"]
    assert first["trained"] == second["trained"]
    assert first["fisher"] == second["fisher"]
    # What is taken out of the weights is not synchronised by DDP: it must be the same on both.
    assert first["reduced"] == second["reduced"] == alone["reduced"]
    assert first["finished"] == second["finished"]
    shares = [samples(tmp_path / "two", rank) for rank in range(2)]
    assert min(map(len, shares)) > 4
    assert not shares[0].keys() & shares[1].keys()
    assert shares[0] | shares[1] == samples(tmp_path / "one", 0)
