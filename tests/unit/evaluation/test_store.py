"""Is a finished part found exactly while nothing that decides it changed, and a full disk said as such?"""

from __future__ import annotations

from pathlib import Path

import pytest

from selfaug.common.store import DiskError, Store, key_of, write_whole


def test_a_part_is_found_by_its_key_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "parts")
    key, other = key_of({"a": 1, "b": [2]}), key_of({"b": [2], "a": 2})
    assert key == key_of({"b": [2], "a": 1})
    assert store.get("task-base", key) is None
    store.put("task-base", key, {"x": 1.5})
    assert store.get("task-base", key) == {"x": 1.5}
    assert store.get("task-base", other) is None
    assert store.get("task-tuned", key) is None


def test_a_damaged_or_foreign_file_counts_as_missing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    key = key_of({"a": 1})
    store.put("general:x/y z-base", key, [1])
    path = store.path("general:x/y z-base", key)
    assert path.parent == tmp_path
    whole = path.read_bytes()
    for raw in (whole[:-3], b"\xff", b"[]", whole.replace(b"sha256:", b"sha257:")):
        path.write_bytes(raw)
        assert store.get("general:x/y z-base", key) is None
    path.write_bytes(whole)
    assert store.get("general:x/y z-base", key) == [1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_whole(path, "old")
    # The temporary file is the device that is always full.
    temporary = tmp_path / ".results.json.tmp"
    temporary.symlink_to("/dev/full")
    with pytest.raises(DiskError, match="No space left") as caught:
        write_whole(path, "new" * 10_000)
    assert "finished" in caught.value.hint
    assert path.read_text(encoding="utf-8") == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]
