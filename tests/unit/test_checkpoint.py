"""Is every damage to a sealed checkpoint noticed, and is the right one taken and kept?"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfaug.common.errors import ConfigError
from selfaug.run import checkpoint
from selfaug.run.checkpoint import SEAL, last_whole, read_seal, resolve, rotate, seal, torn_because, unseal

FILES = {
    "adapter_model.safetensors": bytes(range(256)) * 3,
    "optimizer.pt": b"\x00" * 100,
    "trainer_state.json": b'{"global_step": 10}',
    "empty.txt": b"",
    "nested/rng_state_0.pth": b"state of rank 0",
}
STATE = {"num_tokens": 1234567, "reference": {"name": "initial", "digest": "ab" * 32}}


def write(folder: Path, *, sealed: bool = True) -> Path:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    if sealed:
        seal(folder, STATE)
    return folder


def sealed_at(output_dir: Path, step: int, seconds: float) -> Path:
    folder = write(output_dir / f"checkpoint-{step}")
    os.utime(folder / SEAL, (seconds, seconds))
    return folder


def names(output_dir: Path) -> set[str]:
    return {path.name for path in output_dir.iterdir()}


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    return write(tmp_path / "checkpoint-10")


def test_a_sealed_folder_is_whole_and_gives_its_state_back(sealed: Path) -> None:
    assert torn_because(sealed) is None
    assert read_seal(sealed) == STATE
    assert {p.name for p in sealed.iterdir()} == {*(n.split("/")[0] for n in FILES), SEAL}, "a temporary file is left"


def test_a_seal_can_be_renewed(sealed: Path) -> None:
    (sealed / "optimizer.pt").write_bytes(b"later")
    assert torn_because(sealed) is not None
    seal(sealed, {"num_tokens": 2})
    assert torn_because(sealed) is None
    assert read_seal(sealed) == {"num_tokens": 2}


def test_an_unsealed_folder_is_torn_and_says_so(sealed: Path) -> None:
    unseal(sealed)
    assert SEAL in str(torn_because(sealed))
    unseal(sealed)  # nothing to break: no error


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_to_any_file_is_noticed(sealed: Path, data: st.DataObject) -> None:
    folder = sealed.with_name("damaged")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sealed, folder)
    assert torn_because(folder) is None
    name = data.draw(st.sampled_from([*FILES, SEAL]))
    path = folder / name
    content = path.read_bytes()
    kind = data.draw(st.sampled_from(["flip", "truncate", "append", "remove"] if content else ["append", "remove"]))
    if kind == "flip":
        at = data.draw(st.integers(0, len(content) - 1))
        mask = data.draw(st.integers(1, 255))
        path.write_bytes(content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :])
    elif kind == "truncate":
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    elif kind == "append":
        path.write_bytes(content + data.draw(st.binary(min_size=1, max_size=8)))
    else:
        path.unlink()
    reason = torn_because(folder)
    assert reason is not None
    assert name in reason, "the damaged file is not named"


@pytest.mark.parametrize(
    "garbage",
    [b"", b"\xff\xfe\x00", b"null", b"[]", b"{}", b'{"files": [], "state": {}}', b'{"files": {"a": 3}, "state": {}}',
     b'{"files": {}, "state": null}', b"{" * 50],
)  # fmt: skip
def test_a_seal_of_garbage_is_named(sealed: Path, garbage: bytes) -> None:
    (sealed / SEAL).write_bytes(garbage)
    assert SEAL in str(torn_because(sealed))


def test_a_large_file_is_known_by_its_size(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_HASHED_BYTES", 50)
    seal(sealed, STATE)
    written = json.loads((sealed / SEAL).read_text())["files"]
    assert written["optimizer.pt"] == {"bytes": 100}
    assert "sha256" in written["trainer_state.json"]
    assert torn_because(sealed) is None
    (sealed / "optimizer.pt").write_bytes(b"\x00" * 99)
    assert "optimizer.pt" in str(torn_because(sealed))


def test_the_last_whole_one_is_by_number_and_torn_ones_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (9, 10, 100):
        write(tmp_path / f"checkpoint-{step}", sealed=step != 100)
    write(tmp_path / "checkpoint-old")
    (tmp_path / "checkpoint-200").write_text("a file, not a folder")
    with caplog.at_level(logging.WARNING):
        assert last_whole(tmp_path) == tmp_path / "checkpoint-10"
    assert "checkpoint-100 is not a whole checkpoint" in caplog.text
    assert last_whole(tmp_path / "nowhere") is None


@pytest.mark.parametrize("value", [True, "true", "True", "last", ""])
def test_true_means_the_last_whole_one(tmp_path: Path, value: str | bool) -> None:
    write(tmp_path / "checkpoint-1")
    write(tmp_path / "checkpoint-2", sealed=False)
    assert resolve(value, tmp_path) == tmp_path / "checkpoint-1"


@pytest.mark.parametrize("value", [None, False, "false", "None"])
def test_false_means_anew(sealed: Path, value: str | bool | None) -> None:
    assert resolve(value, sealed.parent) is None


def test_true_without_a_whole_one_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "checkpoint-2", sealed=False)
    with pytest.raises(ConfigError, match="holds no whole one"):
        resolve(True, tmp_path)


def test_a_named_one_is_taken_or_refused_by_name(tmp_path: Path) -> None:
    whole, torn = write(tmp_path / "checkpoint-1"), write(tmp_path / "checkpoint-2")
    (torn / "optimizer.pt").unlink()
    assert resolve(str(whole), tmp_path / "elsewhere") == whole
    with pytest.raises(ConfigError, match=r"checkpoint-2 is not a whole checkpoint: optimizer.pt is missing"):
        resolve(str(torn), tmp_path)
    with pytest.raises(ConfigError, match="is not a folder"):
        resolve(str(tmp_path / "checkpoint-3"), tmp_path)


@pytest.mark.parametrize("limit", [None, 0])
def test_without_a_limit_nothing_is_deleted(tmp_path: Path, limit: int | None) -> None:
    folders = [sealed_at(tmp_path, step, step) for step in (1, 2, 3)]
    rotate(tmp_path, limit, folders[-1])
    assert names(tmp_path) == {"checkpoint-1", "checkpoint-2", "checkpoint-3"}


def test_the_oldest_are_deleted_and_what_is_not_a_checkpoint_stays(tmp_path: Path) -> None:
    folders = [sealed_at(tmp_path, step, step) for step in (8, 9, 10, 11)]
    (tmp_path / "notes").mkdir()
    rotate(tmp_path, 2, folders[-1])
    assert names(tmp_path) == {"checkpoint-10", "checkpoint-11", "notes"}


def test_the_best_is_spared(tmp_path: Path) -> None:
    folders = [sealed_at(tmp_path, step, step) for step in (1, 2, 3)]
    rotate(tmp_path, 1, folders[-1], str(folders[0]))
    assert names(tmp_path) == {"checkpoint-1", "checkpoint-3"}


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_torn_one_of_a_higher_step_never_displaces_the_new_one(tmp_path: Path, limit: int) -> None:
    # A run was killed while it saved step 30, went on from 20, and now saves 25. All within one second.
    sealed_at(tmp_path, 10, 1000.0)
    sealed_at(tmp_path, 20, 1000.1)
    write(tmp_path / "checkpoint-30", sealed=False)
    new = sealed_at(tmp_path, 25, 1000.2)
    rotate(tmp_path, limit, new)
    kept = {
        1: {"checkpoint-25"},
        2: {"checkpoint-20", "checkpoint-25"},
        3: {"checkpoint-10", "checkpoint-20", new.name},
    }
    assert names(tmp_path) == kept[limit]


def test_equal_times_are_ordered_by_step(tmp_path: Path) -> None:
    folders = [sealed_at(tmp_path, step, 5.0) for step in (9, 100, 20)]
    rotate(tmp_path, 2, folders[1])
    assert names(tmp_path) == {"checkpoint-20", "checkpoint-100"}


def test_deleting_breaks_the_seal_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = sealed_at(tmp_path, 1, 1), sealed_at(tmp_path, 2, 2)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed before anything else is gone
    rotate(tmp_path, 1, new)
    assert torn_because(old) is not None
    assert last_whole(tmp_path) == new
