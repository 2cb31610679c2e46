"""Are folders that several machines do not share handled, or refused by name?"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from selfaug.cli import disks
from selfaug.cli.disks import resumed_checkpoint, settle_disks
from selfaug.common.errors import ConfigError
from selfaug.common.ranks import machines, share_a_disk
from selfaug.run.folder import RunFolder

NOTHING = SimpleNamespace(generates=False, weigh=None, fisher=None, start=None, rewrite=None)


def settings(**training: Any) -> Any:
    chosen = {
        "reference_cache": None,
        "save_on_each_node": False,
        "fsdp": None,
        "deepspeed": None,
        "changes": NOTHING,
        "method": "selfaug",
        "resume_from_checkpoint": None,
    }
    return SimpleNamespace(training=SimpleNamespace(**(chosen | training)))


@pytest.fixture
def two_machines(monkeypatch: pytest.MonkeyPatch) -> dict[Path, bool]:
    """Two machines; the answers of ``share_a_disk`` by folder."""
    shared: dict[Path, bool] = {}
    monkeypatch.setattr(disks, "machines", lambda: 2)
    monkeypatch.setattr(disks, "share_a_disk", shared.__getitem__)
    return shared


def test_one_machine_shares_with_itself_and_leaves_nothing(tmp_path: Path) -> None:
    assert machines() == 1
    assert share_a_disk(tmp_path / "not" / "yet")
    assert list(tmp_path.iterdir()) == []
    run = settings()
    settle_disks(run, RunFolder(tmp_path / "run"))
    assert run.training.save_on_each_node is False


def test_each_machine_keeps_its_checkpoints_on_its_own_disk(tmp_path: Path, two_machines: dict[Path, bool]) -> None:
    folder = RunFolder(tmp_path / "run")
    two_machines[folder.path] = False
    run = settings()
    settle_disks(run, folder)
    assert run.training.save_on_each_node is True
    two_machines[folder.path] = True
    run = settings()
    settle_disks(run, folder)
    assert run.training.save_on_each_node is False


@pytest.mark.parametrize(
    ("shared", "given", "message"),
    [
        (True, {"save_on_each_node": True}, "write the same files at once"),
        (False, {"fsdp": "full_shard"}, "parts from all of them"),
        (False, {"deepspeed": "zero.json"}, "parts from all of them"),
        (False, {"changes": SimpleNamespace(**(vars(NOTHING) | {"generates": True})), "method": "sdft"}, "'sdft'"),
        (True, {"reference_cache": "hidden"}, "reference_cache='hidden'"),
    ],
)
def test_what_cannot_work_is_refused(
    shared: bool, given: dict[str, Any], message: str, tmp_path: Path, two_machines: dict[Path, bool]
) -> None:
    folder = RunFolder(tmp_path / "run")
    two_machines.update({folder.path: shared, Path("hidden"): False})
    with pytest.raises(ConfigError, match=message):
        settle_disks(settings(**given), folder)


def test_fsdp_of_accelerate_launch_is_known_by_its_environment(
    tmp_path: Path, two_machines: dict[Path, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    folder = RunFolder(tmp_path / "run")
    two_machines[folder.path] = False
    with pytest.raises(ConfigError, match="parts from all of them"):
        settle_disks(settings(), folder)


def test_different_checkpoints_are_refused_with_what_each_process_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run")
    assert resumed_checkpoint(settings(), folder) is None
    one, other = tmp_path / "checkpoint-4", tmp_path / "checkpoint-6"
    monkeypatch.setattr(disks, "in_every_process", lambda _: [(one, 9), (other, 13)])
    with pytest.raises(ConfigError, match="process 0: checkpoint-4; process 1: checkpoint-6"):
        resumed_checkpoint(settings(), folder)
    monkeypatch.setattr(disks, "in_every_process", lambda _: [(one, 9), (one, 8)])  # of another run
    with pytest.raises(ConfigError, match="different checkpoints"):
        resumed_checkpoint(settings(), folder)
    monkeypatch.setattr(disks, "in_every_process", lambda _: [(one, 9), (tmp_path / "b" / "checkpoint-4", 9)])
    assert resumed_checkpoint(settings(), folder) == one
