"""Output folders: checks before writing, and folders that appear as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from selfaug.common.errors import ConfigError

__all__ = ["check_free", "check_writable", "open_to_others", "written_whole"]


def open_to_others(folder: Path) -> None:
    """Give a folder's files the default permissions, since safetensors makes files readable for the owner only."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~umask)


def check_writable(folder: Path, setting: str = "output_dir") -> None:
    """Check that files can be written in a folder, which need not exist yet; nothing is left behind.

    Args:
        folder: Path of the folder.
        setting: Setting that names it, for the message.

    Raises:
        ConfigError: If its path leads through a file, it may not be written, or its disk is full.
    """
    there = next((path for path in (folder, *folder.parents) if path.exists()), Path())
    if not there.is_dir():
        inside = "is" if there == folder else f"lies inside of {str(there)!r}, which is"
        raise ConfigError(f"{setting} {str(folder)!r} {inside} a file", "name a folder that is new or empty.")
    try:
        with tempfile.TemporaryDirectory(prefix=".selfaug-", dir=there) as trial:
            (Path(trial) / "trial").write_bytes(bytes(4096))
    except OSError as error:
        raise ConfigError(
            f"{setting} {str(folder)!r} cannot be written: {error.strerror or error} ({str(there)!r})",
            "name a folder that you may write, on a disk with space.",
        ) from None


def check_free(folder: Path, *, ours: Collection[str], overwrite: bool) -> None:
    """Check that an output folder holds nothing that must not be replaced.

    Args:
        folder: Path of the folder, which may be missing or empty.
        ours: Names of the files that the verb writes.
        overwrite: Whether these files may be replaced.

    Raises:
        ConfigError: If it is a file, holds other files, or holds ours and ``overwrite`` is false.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output_dir {str(folder)!r} is a file", "name a folder.")
    check_writable(folder)
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    foreign = [name for name in there if name not in ours]
    if foreign:
        raise ConfigError(
            f"output_dir {str(folder)!r} holds other files ({', '.join(foreign[:3])}), which would be lost",
            "name a folder that is new or empty.",
        )
    if there and not overwrite:
        raise ConfigError(
            f"output_dir {str(folder)!r} already holds {', '.join(there)}",
            "name another folder, or pass --overwrite_output_dir to replace these files.",
        )


@contextlib.contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``folder`` at the end of the block, and is removed if the block fails.

    Raises:
        ConfigError: If the folder cannot be written.
    """
    temporary = aside = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)  # mkdtemp makes folders for the owner only
        yield temporary
        if folder.is_dir() and any(folder.iterdir()):
            aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
            folder.rename(aside)
        temporary.rename(folder)
    except OSError as error:
        if aside is not None and not folder.exists():
            aside.rename(folder)
        raise ConfigError(
            f"output_dir {str(folder)!r} cannot be written ({error})", "choose a folder with space that you may write."
        ) from None
    finally:
        for leftover in (temporary, aside):
            if leftover is not None:
                shutil.rmtree(leftover, ignore_errors=True)
