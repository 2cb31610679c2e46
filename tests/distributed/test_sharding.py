"""Does a sharded run train and export what one process does?

The cells of `docs/sharding.md`: each {sharding × adapter × reference} is trained over two real processes (gloo) and in
one, and its exported weights are compared; or it is refused, by the same words that `check_sharding` says without
processes. The rest of the settings are tried in pairs. All but two cases run nightly, those of ZeRO where DeepSpeed is
installed (CONTRIBUTING.md says how).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.cells import KINDS, METHODS, PAIRS, PLAIN, STEPS, Cell, table, train
from tests.distributed.launching import largest_difference, run_cells
from tests.models import save_tiny

# The first cell of a sharding waits for all of them.
pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(7200)]

STORIES = Path(__file__).resolve().parents[3] / "shared" / "models" / "stories260k"

# Largest difference of a weight after four steps of 1e-3. float32: ranks add gradients in another order, 6e-8 a
# rounding; Adam's steps multiply it where a gradient is small. Quantised: TRL keeps the adapter in bfloat16, of which
# one unit in the last place is 2^-10 for a weight up to 0.25.
TOLERANCE = {"lora": 2e-5, "dora": 2e-5, "full": 2e-5, "qlora4": 1e-3, "qlora8": 1e-3}
# Whatever the sharding: there is no adapter to switch off or copy, as one process says too.
NO_ADAPTER = "full fine-tuning has none"
REFUSED = {("fsdp2", "qlora8"): "cannot split over ranks"}


def missing(kind: str, cell: Cell) -> str | None:
    """Why a cell cannot be tried here."""
    if kind.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        return "needs an environment with DeepSpeed (CONTRIBUTING.md)"
    if cell.adapter.startswith("qlora") and importlib.util.find_spec("bitsandbytes") is None:
        return "needs an environment with bitsandbytes (CONTRIBUTING.md)"
    if cell.checkpointing == "own" and kind not in ("fsdp2", "whole"):
        return "only FSDP has checkpointing of its own"
    return None if STORIES.is_dir() else "needs ../shared/models/stories260k"


def check(
    kind: str,
    cell: Cell,
    sharded: dict[str, Any],
    whole: dict[str, Any],
    folder: Path,
    shows: str = "alignment",
) -> None:
    """Compare a cell's two runs, or its refusal; the log entry ``shows`` tells that the method acts."""
    refusal = REFUSED.get((kind, cell.adapter))
    if cell.adapter == "full" and cell.reference in ("base", "initial"):
        refusal = NO_ADAPTER
    if cell.checkpointing == "own" and cell.adapter != "full":
        refusal = "no adapter to save"
    if cell.method == "finch" and kind.startswith("zero"):
        refusal = "DeepSpeed takes the step before"
    if refusal is not None:
        assert refusal in sharded.get("refused", ""), sharded
        return
    assert "losses" in whole, whole
    assert "losses" in sharded, sharded.get("trace") or sharded
    assert len(whole["losses"]) == len(sharded["losses"]) == STEPS
    assert any(step.get(shows, 0.0) > 1e-4 for step in whole["losses"]), "nothing is compared"
    assert shows != "alignment" or any(step["aligned_tokens"] > 0 for step in whole["losses"]), "nothing aligned"
    for one, two in zip(whole["losses"], sharded["losses"], strict=True):
        for key in ("aligned_tokens", "response_tokens", "num_tokens"):
            assert two.get(key, 0) == one.get(key, 0)
    difference = largest_difference(folder / kind / cell.name, folder / "whole" / cell.name)
    print(f"{kind} {cell.name}: {difference:.1e}")
    assert difference <= TOLERANCE[cell.adapter]


@pytest.fixture(scope="session")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[dict[str, Any], dict[str, Any], Path]]:
    """A function that returns the results of a cell, sharded and whole; all cells of a sharding run in one launch."""
    folder = tmp_path_factory.mktemp("cells")

    @cache
    def of(kind: str, which: str, own: bool) -> dict[str, dict[str, Any]]:
        lists = {"table": table(), "pairs": PAIRS, "methods": [PLAIN, *METHODS]}
        cells = [cell for cell in lists[which] if missing(kind, cell) is None]
        cells = [cell for cell in cells if (cell.checkpointing == "own") == own]
        changes = {"fsdp_activation_checkpointing": True} if own and kind == "fsdp2" else {}
        return run_cells(kind, cells, STORIES, folder / kind, **changes)

    def result(kind: str, cell: Cell, which: str) -> tuple[dict[str, Any], dict[str, Any], Path]:
        own = cell.checkpointing == "own"
        return of(kind, which, own)[cell.name], of("whole", which, own)[cell.name], folder

    return result


@pytest.mark.nightly
@pytest.mark.shared
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", table(), ids=lambda cell: cell.name)
def test_a_cell_of_the_table(kind: str, cell: Cell, launched: Any) -> None:
    if (reason := missing(kind, cell)) is not None:
        pytest.skip(reason)
    sharded, whole, folder = launched(kind, cell, "table")
    check(kind, cell, sharded, whole, folder)


@pytest.mark.nightly
@pytest.mark.shared
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", PAIRS, ids=lambda cell: cell.name)
def test_a_pair_of_other_settings(kind: str, cell: Cell, launched: Any) -> None:
    if (reason := missing(kind, cell)) is not None:
        pytest.skip(reason)
    sharded, whole, folder = launched(kind, cell, "pairs")
    check(kind, cell, sharded, whole, folder)


@pytest.mark.nightly
@pytest.mark.shared
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", METHODS, ids=lambda cell: cell.method)
def test_another_method(kind: str, cell: Cell, launched: Any) -> None:
    if (reason := missing(kind, cell)) is not None:
        pytest.skip(reason)
    sharded, whole, folder = launched(kind, cell, "methods")
    check(kind, cell, sharded, whole, folder, METHODS[cell])
    acts = largest_difference(folder / "whole" / cell.name, folder / "whole" / PLAIN.name)
    assert acts > 5 * TOLERANCE[cell.adapter], "the method does nothing"


def test_fsdp2_trains_what_one_process_does(tmp_path: Path) -> None:
    """The cases of CI: the copy of the adapter is exchanged in shards; a cache is written by ranks and read."""
    model = save_tiny(tmp_path / "model")
    cells = [Cell("lora", "initial", fraction=0.5, slice=6), Cell("lora", "cached")]
    for cell in cells:
        (tmp_path / "whole" / cell.name).mkdir(parents=True)
    sharded = run_cells("fsdp2", cells, model, tmp_path / "fsdp2")
    for cell in cells:
        whole = train("whole", cell, str(model), tmp_path / "whole" / cell.name)
        check("fsdp2", cell, sharded[cell.name], whole, tmp_path)
