"""What stops the conversion of SmolLM2 is told before 93 MB are downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfaug.common.errors import ConfigError
from selfaug.common.store import DiskError
from selfaug.lab import smollm2


@pytest.mark.parametrize("missing", ["package", "folder"])
def test_what_is_missing_is_told_before_the_download(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("something was downloaded")

    (tmp_path / "file").write_text("")
    cache = tmp_path if missing == "package" else tmp_path / "file"
    monkeypatch.setenv("SELFAUG_CACHE", str(cache))
    monkeypatch.setattr(smollm2.subprocess, "run", refuse)
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None if missing == "package" else object())
    error, said = (ConfigError, "gguf is not installed") if missing == "package" else (DiskError, "cannot be written")
    with pytest.raises(error, match=said):
        smollm2.fetch()
