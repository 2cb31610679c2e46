"""The seal of a checkpoint, and the choice of the checkpoint that a run goes on from.

The last thing written into a checkpoint is its seal: the sizes and hashes of all other files. A folder without a seal,
or with a file that differs from it, was torn (killed while saving, say) and is never resumed from.
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
# A file above this size is known by its size alone: hashing the optimizer of a large model takes minutes.
_HASHED_BYTES = 2**30
_NAME = re.compile(r"checkpoint-(\d+)")

logger = logging.getLogger(__name__)


def seal(folder: Path, state: Mapping[str, Any]) -> None:
    """Write the seal of a finished checkpoint with ``state`` (JSON) in it; atomically, after its files are on disk."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / SEAL)
    for path in paths:
        flush(path)
    files = {path.relative_to(folder).as_posix(): _print(path) for path in paths}
    write_durably(folder / SEAL, _seal_text({"files": files, "state": dict(state)}))
    flush(folder.parent)


def unseal(folder: Path) -> None:
    """Break the seal before files of a checkpoint are written anew: until the next one it counts as torn."""
    (folder / SEAL).unlink(missing_ok=True)


def _seal_text(body: dict[str, Any]) -> str:
    # The seal carries its own hash: a damaged one must not pass for a state that was never saved.
    body = {"files": body["files"], "state": body["state"]}
    own = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({"sha256": own, **body}, indent=1)


def _print(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    hashed = {"sha256": file_hash(path).removeprefix("sha256:")} if size <= _HASHED_BYTES else {}
    return {"bytes": size, **hashed}


def torn_because(folder: str | Path) -> str | None:
    """Why a checkpoint is not whole, or ``None`` if it is."""
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
        if path.stat().st_size != written["bytes"] or _print(path) != written:
            return f"{name} differs from what was written"
    return None


def read_seal(folder: str | Path) -> dict[str, Any]:
    """The ``state`` that was sealed with a whole checkpoint."""
    folder = Path(folder)
    state: dict[str, Any] = json.loads((folder / SEAL).read_text(encoding="utf-8"))["state"]
    return state


def step_of(folder: str | Path) -> int:
    """Number of steps in a checkpoint's name; -1 for the name of something else."""
    found = _NAME.fullmatch(Path(folder).name)
    return int(found.group(1)) if found else -1


def numbered(output_dir: str | Path) -> list[Path]:
    """Checkpoint folders, the latest step first."""
    output_dir = Path(output_dir)
    found = output_dir.iterdir() if output_dir.is_dir() else ()
    return sorted((path for path in found if step_of(path) >= 0 and path.is_dir()), key=step_of, reverse=True)


def last_whole(output_dir: str | Path) -> Path | None:
    """The whole checkpoint with the most steps; torn ones above it are named in a warning and passed over."""
    for folder in numbered(output_dir):
        reason = torn_because(folder)
        if reason is None:
            return folder
        logger.warning("%s is not a whole checkpoint (%s); going on from an earlier one.", folder, reason)
    return None


def rotate(output_dir: Path, limit: int | None, new: Path, best: str | None = None) -> None:
    """Delete the oldest checkpoints until ``limit`` are left, unsealed ones first; never ``new`` or ``best``.

    Args:
        output_dir: Folder of the checkpoints.
        limit: How many to keep; ``None`` or 0 for all.
        new: The one that was sealed just now. Neither times of change nor step numbers tell which that is: some file
            systems have no true times, and a torn checkpoint of a killed run may have a higher number.
        best: The one with the best metric, if known.
    """
    if not limit:
        return
    kept = {new.resolve(), *([Path(best).resolve()] if best else [])}
    folders = [folder for folder in reversed(numbered(output_dir)) if folder.resolve() not in kept]
    excess = len(folders) + len(kept) - limit
    for folder in sorted(folders, key=_sealed_at)[: max(excess, 0)]:
        # Its seal goes first: killed in between, what is left of it is not taken for a whole one.
        unseal(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _sealed_at(folder: Path) -> float:
    """Seconds since 1970; 0 for an unsealed one. Equal times leave the order as it is: by step."""
    try:
        return (folder / SEAL).stat().st_mtime
    except OSError:
        return 0.0


def resolve(value: str | bool | None, output_dir: str | Path) -> Path | None:
    """The checkpoint that ``resume_from_checkpoint`` means: ``None``, the last whole one, or the one named.

    ``True``, ``"true"``, ``"last"`` and an empty value mean the last whole one.

    Raises:
        ConfigError: If there is none, or the one named is torn or not there.
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
