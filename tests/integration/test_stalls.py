"""Does a step of training leave the device its queue? Whatever makes the host wait for it is counted."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from selfaug.planning.plan import BatchPositions, plan_step, read_batch
from selfaug.step import driver
from tests.played_device import Device, Window, trainer, waits_per_step

# transformers looks into the mask of padded rows, and at the positions of packed ones, in every pass.
THEIRS = "transformers/masking_utils.py"
LAYOUTS: dict[str, dict[str, Any]] = {
    "padding, drawn, in slices": {"align_fraction": 0.5, "reference_slice": 4},
    "packing, checkpointing": {"packing": True, "max_length": 48, "gradient_checkpointing": True},
    "weighted, compared": {"method": "flow+asft"},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_nothing_but_the_masks_of_transformers_waits_for_the_device(name: str, tmp_path: Path) -> None:
    waits = waits_per_step(tmp_path, **LAYOUTS[name])
    assert waits, "transformers reads its masks, and nothing was seen"
    assert {where for where in waits if not where.startswith(THEIRS)} == set()


def test_a_batch_that_nobody_read_is_copied_once_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under `attach`, or where accelerate cuts up the batches of a stream; and a planted wait is seen."""
    monkeypatch.setattr(driver.ReadingCollator, "__call__", lambda self, rows: self._collate(rows))
    waits = waits_per_step(tmp_path)
    ours = {where: count for where, count in waits.items() if not where.startswith(THEIRS)}
    assert ours == {"selfaug/step/driver.py:_on_host: .cpu()": 1.0}


def test_the_played_device_sees_reads_and_copies() -> None:
    device, here = Device(), torch.arange(4)
    device.counting = True
    with device.played():
        there = here.to(torch.device("cpu"))
        assert not device.holds(here)
        doubled = there * 2
        assert device.holds(doubled)
        assert doubled[doubled > 2].tolist() == [4, 6]
        assert int(doubled.sum()) == 12
        here.to(torch.device("cpu"), non_blocking=True)
        assert doubled.cpu().tolist() == [0, 2, 4, 6]  # the copy is the host's
        assert int(here.sum()) == 6
    found = sorted(where.rpartition(": ")[2] for where in device.waits.elements())
    assert found == [".cpu()", ".to(device)", ".tolist()", "_local_scalar_dense", "index"]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_reads_what_the_plan_needs(workers: int, tmp_path: Path) -> None:
    made = trainer(tmp_path, use_cpu=True, dataloader_num_workers=workers)
    batch = next(iter(made.get_train_dataloader()))
    positions = batch.pop(driver.KEY)
    assert isinstance(positions, BatchPositions)
    fresh = plan_step([batch], seed=0, step=0, align_fraction=0.5)
    again = plan_step([batch], seed=0, step=0, align_fraction=0.5, positions=[positions])
    assert fresh.n_aligned > 0
    assert torch.equal(fresh.counts(), again.counts())
    assert torch.equal(fresh.micro[0].aligned_N, again.micro[0].aligned_N)
    assert torch.equal(fresh.micro[0].label_N, again.micro[0].label_N)
    assert read_batch(batch).bounds == positions.bounds


@pytest.mark.gpu
@pytest.mark.parametrize("name", LAYOUTS)
def test_on_a_gpu_nothing_but_the_masks_of_transformers_waits(name: str, tmp_path: Path) -> None:
    made = trainer(tmp_path, **LAYOUTS[name])
    made.add_callback(Window(lambda counted: torch.cuda.set_sync_debug_mode("warn" if counted else "default")))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        made.train()
    assert next(made.model.parameters()).is_cuda
    waits = [each for each in seen if "synchronizing CUDA operation" in str(each.message)]
    assert waits, "transformers reads its masks, and nothing was seen"
    assert {Path(each.filename).name for each in waits} == {"masking_utils.py"}
