"""Results stored on disk under a key, so that finished work is not repeated.

A key is a hash of everything that decides the result: weights, prompts, settings, versions. There are three forms:
:class:`Store` (a JSON file a result), :func:`keep_tensors` (a safetensors file), and :class:`Lines` (a JSONL file, for
many small results). Writes are atomic and flushed to disk. A result that is damaged or has another key counts as
missing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.common.errors import UserError
from selfaug.common.files import json_of_ours, replacing, whole_lines, write_durably
from selfaug.common.fingerprint import text_hash

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DiskError", "Lines", "Store", "keep_tensors", "kept_tensors", "key_of", "write_whole", "writing"]

_MADE_BY = "made_by"

logger = logging.getLogger(__name__)


class DiskError(UserError):
    """The error of a file that cannot be written."""


def key_of(deciding: Mapping[str, Any]) -> str:
    """Return ``sha256:`` and the hash of everything that decides a result, independent of its order."""
    return str(text_hash(json.dumps(deciding, sort_keys=True, ensure_ascii=True)))


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Make the folder of a file that the block writes, and turn an ``OSError`` of the block into one for the user.

    Raises:
        DiskError: If the file cannot be written, for lack of space, say.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise DiskError(
            f"{path} cannot be written: {error.strerror or error}",
            "free some space or mend the folder, then run the same command again: results that are finished are kept "
            "and not repeated.",
        ) from error


def write_whole(path: str | Path, text: str, *, shared: bool = False) -> None:
    """Write a text file atomically, in a folder that need not exist yet.

    Raises:
        DiskError: If the file cannot be written.
    """
    with writing(path):
        write_durably(Path(path), text, shared=shared)


class Store:
    """A store of results as JSON files of one folder.

    Args:
        folder: Folder of the files; it is made when the first result is written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, name: str, key: str) -> Path:
        """Return the path of the result ``name`` with this key."""
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-")[:80]
        return self.folder / f"{plain}-{key.removeprefix('sha256:')[:16]}.json"

    def get(self, name: str, key: str) -> Any:
        """Return a stored result, or ``None`` where its file is missing or damaged."""
        body = json_of_ours(self.path(name, key))
        return body["payload"] if isinstance(body, dict) and body.get("key") == key and "payload" in body else None

    def put(self, name: str, key: str, payload: Any) -> None:
        """Store a result.

        Raises:
            DiskError: If its file cannot be written.
        """
        text = json.dumps({"key": key, "part": name, "payload": payload}, allow_nan=False)
        write_whole(self.path(name, key), text, shared=True)


def keep_tensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    made_by: Mapping[str, str],
    notes: Mapping[str, str] | None = None,
    *,
    shared: bool = False,
) -> None:
    """Write tensors into one safetensors file, with everything that decides them.

    Args:
        path: Path of the file.
        tensors: Tensors by name.
        made_by: Facts that decide the tensors.
        notes: Further texts to store with them.
        shared: Whether several processes may write the file at the same time.

    Raises:
        DiskError: If the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with writing(path), replacing(Path(path), shared=shared) as temporary:
        try:
            plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(plain, temporary, metadata={_MADE_BY: json.dumps(dict(made_by)), **(notes or {})})
        except SafetensorError as error:  # safetensors wraps an OSError
            raise OSError(str(error)) from error


def kept_tensors(path: str | Path, made_by: Mapping[str, str]) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Return the tensors and notes of a file; ``None`` where it is missing or damaged, or differs in ``made_by``."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            notes = dict(file.metadata() or {})
            if json.loads(notes.pop(_MADE_BY)) == dict(made_by):
                return {name: file.get_tensor(name) for name in file.keys()}, notes  # noqa: SIM118
        logger.info("%s is of another base model, other texts or other settings, and is made anew.", path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        logger.info("%s is damaged (%s), and is made anew.", path, error)
    return None


class Lines:
    """A store of small results by their keys in a JSONL file, one a line, flushed to disk as they are added.

    Args:
        path: Path of the file; it is made when the first result is added.
        others: Further files to read but not write, such as those of other processes.
    """

    def __init__(self, path: str | Path, others: Iterable[Path] = ()) -> None:
        self.path = Path(path)
        files = sorted({self.path, *others})
        self.rows = {row["key"]: row for file in files for row in whole_lines(file) if isinstance(row.get("key"), str)}

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Store results, each with its ``key``.

        Raises:
            DiskError: If the file cannot be written.
        """
        new = {row["key"]: row for row in rows}
        self.rows.update(new)
        text = "".join(json.dumps(row) + "\n" for row in new.values())
        with writing(self.path), self.path.open("a+b") as file:
            size = file.tell()
            file.seek(max(size - 1, 0))
            torn = file.read(1) not in (b"", b"\n")  # a line that a kill cut must not swallow the next one
            file.write(("\n" * torn + text).encode())
            file.flush()
            os.fsync(file.fileno())
