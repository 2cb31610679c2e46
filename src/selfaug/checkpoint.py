"""Is a checkpoint whole, and which one does a run go on from?

The last thing written into a checkpoint is its seal: the sizes and hashes of all other files. A folder without a seal,
or with a file that differs from it, was torn (killed while saving, say) and is never resumed from.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfaug.errors import ConfigError

__all__ = ["SEAL", "last_whole", "read_seal", "resolve", "seal", "torn_because", "write_durably"]

SEAL = "selfaug_checkpoint.json"
# A file above this size is known by its size alone: hashing the optimizer of a large model takes minutes.
_HASHED_BYTES = 2**30
_NAME = re.compile(r"checkpoint-(\d+)")

logger = logging.getLogger(__name__)


def seal(folder: Path, state: Mapping[str, Any]) -> None:
    """Write the seal of a finished checkpoint with ``state`` (JSON) in it; atomically, after its files are on disk."""
    files = {p.relative_to(folder).as_posix(): _print(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    files.pop(SEAL, None)
    write_durably(folder / SEAL, json.dumps({"files": files, "state": dict(state)}, indent=1))


def write_durably(path: Path, text: str) -> None:
    """Write a text file that is either the old one or the new one, whatever happens in between."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _print(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    if size > _HASHED_BYTES:
        return {"bytes": size}
    with path.open("rb") as file:
        return {"bytes": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def torn_because(folder: Path) -> str | None:
    """Why a checkpoint is not whole, or ``None`` if it is."""
    try:
        files = json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"it has no {SEAL}, which is written last"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its {SEAL} cannot be read ({error})"
    for name, written in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != written["bytes"] or _print(path) != written:
            return f"{name} differs from what was written"
    return None


def read_seal(folder: Path) -> dict[str, Any]:
    """The ``state`` that was sealed with a whole checkpoint."""
    state: dict[str, Any] = json.loads((folder / SEAL).read_text(encoding="utf-8"))["state"]
    return state


def _numbered(output_dir: Path) -> list[Path]:
    """Checkpoint folders, the latest step first."""
    if not output_dir.is_dir():
        return []
    found = [(int(m.group(1)), p) for p in output_dir.iterdir() if (m := _NAME.fullmatch(p.name)) and p.is_dir()]
    return [path for _, path in sorted(found, reverse=True)]


def last_whole(output_dir: Path) -> Path | None:
    """The whole checkpoint with the most steps; torn ones above it are named in a warning and passed over."""
    for folder in _numbered(output_dir):
        reason = torn_because(folder)
        if reason is None:
            return folder
        logger.warning("%s is not a whole checkpoint (%s); going on from an earlier one.", folder, reason)
    return None


def resolve(value: str | bool | None, output_dir: Path) -> Path | None:
    """The checkpoint that ``resume_from_checkpoint`` means: ``None``, the last whole one, or the one named.

    ``True``, ``"true"``, ``"last"`` and an empty value mean the last whole one.

    Raises:
        ConfigError: If there is none, or the one named is torn or not there.
    """
    if value is None or value is False or (isinstance(value, str) and value.lower() in ("false", "none")):
        return None
    if value is True or value.lower() in ("", "true", "last"):
        last = last_whole(output_dir)
        if last is None:
            raise ConfigError(
                f"resume_from_checkpoint={value!r} asks for the last checkpoint, but {output_dir} holds no whole one.",
                "leave resume_from_checkpoint out to begin anew, or name the run's own output_dir.",
            )
        return last
    folder = Path(value)
    if not folder.is_dir():
        raise ConfigError(
            f"resume_from_checkpoint={value!r} is not a folder.",
            "name a checkpoint-N folder, or give 'true' for the last whole one of the output_dir.",
        )
    reason = torn_because(folder)
    if reason is not None:
        raise ConfigError(
            f"{folder} is not a whole checkpoint: {reason}. Resuming from it would silently give another adapter.",
            "give 'true' to go on from the last whole checkpoint of the output_dir.",
        )
    return folder
