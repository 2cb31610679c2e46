"""A store of finished parts, so that an interrupted piece of work does not repeat them.

A part of one model is a file whose name holds the hash of everything that decides it: weights, prompts, settings,
versions. A finished part is found again exactly while none of these has changed. What belongs to the base model alone
does not depend on the adapter, so runs with one base can share a folder (`--store`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfaug.common.errors import UserError
from selfaug.common.files import write_durably
from selfaug.common.fingerprint import text_hash

__all__ = ["DiskError", "Store", "key_of", "write_whole"]


class DiskError(UserError):
    """A file could not be written."""


def key_of(deciding: Mapping[str, Any]) -> str:
    """``sha256:`` of everything that decides a part, whatever its order."""
    return str(text_hash(json.dumps(deciding, sort_keys=True, ensure_ascii=True)))


def write_whole(path: str | Path, text: str) -> None:
    """Write a file that is the old one or the new one; nothing is left behind where that fails.

    Raises:
        DiskError: If it cannot be written; no space left, say.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, text)
    except OSError as error:
        raise DiskError(
            f"{path} cannot be written: {error.strerror or error}",
            "free some space or mend the folder, then run the same command again: parts that are finished are kept and "
            "not repeated.",
        ) from error


class Store:
    """Finished parts as JSON files of one folder.

    Args:
        folder: Made when the first part is written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, name: str, key: str) -> Path:
        """Where the part ``name`` with this key lies."""
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-")[:80]
        return self.folder / f"{plain}-{key.removeprefix('sha256:')[:16]}.json"

    def get(self, name: str, key: str) -> Any:
        """What was stored, or ``None`` where it is not there or its file is damaged."""
        try:
            body = json.loads(self.path(name, key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return body["payload"] if isinstance(body, dict) and body.get("key") == key and "payload" in body else None

    def put(self, name: str, key: str, payload: Any) -> None:
        """Store a finished part.

        Raises:
            DiskError: If it cannot be written.
        """
        write_whole(self.path(name, key), json.dumps({"key": key, "part": name, "payload": payload}, allow_nan=False))
