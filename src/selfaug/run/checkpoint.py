"""The seal of a checkpoint, and the choice of the checkpoint that a run resumes from.

The last file written into a checkpoint is its seal: the sizes and hashes of all other files. A checkpoint is whole if
its files agree with its seal. Otherwise it is torn (by a kill while it was saved, say), and is never resumed from.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfaug.common.errors import ConfigError
from selfaug.common.files import flush, write_durably
from selfaug.common.fingerprint import file_hash

__all__ = [
    "SEAL", "last_whole", "numbered", "read_seal", "resolve", "rotate", "seal", "step_of", "torn_because", "unseal",
]  # fmt: skip

SEAL = "selfaug_checkpoint.json"
# Of a larger file only the size is compared: hashing the optimizer of a large model takes minutes.
_HASHED_BYTES = 2**30
_NAME = re.compile(r"checkpoint-(\d+)")

logger = logging.getLogger(__name__)


def seal(folder: Path, state: Mapping[str, Any]) -> None:
    """Write the seal of a finished checkpoint with ``state`` (JSON) in it, atomically, after its files are on disk."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / SEAL)
    for path in paths:
        flush(path)
    files = {path.relative_to(folder).as_posix(): _fingerprint(path) for path in paths}
    write_durably(folder / SEAL, _seal_text({"files": files, "state": dict(state)}))
    flush(folder.parent)


def unseal(folder: Path) -> None:
    """Remove the seal before files of a checkpoint are written anew; until the next seal the checkpoint is torn."""
    (folder / SEAL).unlink(missing_ok=True)


def _seal_text(body: dict[str, Any]) -> str:
    # The seal contains its own hash, so that a damaged seal is not read as another state.
    body = {"files": body["files"], "state": body["state"]}
    own = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({"sha256": own, **body}, indent=1)


def _fingerprint(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    hashed = {"sha256": file_hash(path).removeprefix("sha256:")} if size <= _HASHED_BYTES else {}
    return {"bytes": size, **hashed}


def torn_because(folder: str | Path) -> str | None:
    """Return the reason why a checkpoint is not whole, or ``None`` if it is."""
    folder = Path(folder)
    try:
        text = (folder / SEAL).read_text(encoding="utf-8")
        body = json.loads(text)
        untouched = text == _seal_text(body)
    except FileNotFoundError:
        return f"it has no {SEAL}, which is written last"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its {SEAL} cannot be read ({error})"
    if not untouched:
        return f"its {SEAL} differs from what was written"
    for name, written in body["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != written["bytes"] or _fingerprint(path) != written:
            return f"{name} differs from what was written"
    return None


def read_seal(folder: str | Path) -> dict[str, Any]:
    """Return the ``state`` in the seal of a whole checkpoint."""
    folder = Path(folder)
    state: dict[str, Any] = json.loads((folder / SEAL).read_text(encoding="utf-8"))["state"]
    return state


def step_of(folder: str | Path) -> int:
    """Return the number of steps in a checkpoint's name; -1 for any other name."""
    match = _NAME.fullmatch(Path(folder).name)
    return int(match.group(1)) if match else -1


def numbered(output_dir: str | Path) -> list[Path]:
    """Return the checkpoint folders, the latest step first."""
    output_dir = Path(output_dir)
    entries = output_dir.iterdir() if output_dir.is_dir() else ()
    return sorted((path for path in entries if step_of(path) >= 0 and path.is_dir()), key=step_of, reverse=True)


def last_whole(output_dir: str | Path) -> Path | None:
    """Return the whole checkpoint with the most steps; a warning names torn ones with more."""
    for folder in numbered(output_dir):
        reason = torn_because(folder)
        if reason is None:
            return folder
        logger.warning("%s is not a whole checkpoint (%s); going on from an earlier one.", folder, reason)
    return None


def rotate(output_dir: Path, limit: int | None, new: Path, best: str | None = None) -> None:
    """Delete the oldest checkpoints until ``limit`` are left, unsealed ones first, but never ``new`` or ``best``.

    Args:
        output_dir: Folder of the checkpoints.
        limit: Number of checkpoints to keep; ``None`` or 0 for all.
        new: Checkpoint that has just been sealed. It cannot be found by time or number: some file systems have no
            reliable times, and a torn checkpoint of a killed run may have a higher number.
        best: Checkpoint with the best metric; ``None`` where it is not known.
    """
    if not limit:
        return
    kept = {new.resolve(), *([Path(best).resolve()] if best else [])}
    folders = [folder for folder in reversed(numbered(output_dir)) if folder.resolve() not in kept]
    excess = len(folders) + len(kept) - limit
    for folder in sorted(folders, key=_sealed_at)[: max(excess, 0)]:
        # The seal is removed first, so that a kill during the deletion leaves no seemingly whole checkpoint.
        unseal(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _sealed_at(folder: Path) -> float:
    """Return the time of the seal in seconds since 1970; 0 without a seal."""
    try:
        return (folder / SEAL).stat().st_mtime
    except OSError:
        return 0.0


def resolve(value: str | bool | None, output_dir: str | Path) -> Path | None:
    """Return the checkpoint that ``resume_from_checkpoint`` names: none, the last whole one, or a given folder.

    ``True``, ``"true"``, ``"last"`` and an empty value mean the last whole one.

    Raises:
        ConfigError: If there is no whole checkpoint, or the given one is torn or missing.
    """
    output_dir = Path(output_dir)
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
