"""The store of a model's replies, written as they come, so that a killed run can be resumed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from selfaug.common.store import Lines
from selfaug.generation.requests import Reply

__all__ = ["FOLDER", "Store"]

FOLDER = "generated"


class Store:
    """A store of replies by the keys of their requests, in ``samples-RANK.jsonl`` files of one folder.

    Every rank reads all files and writes its own.

    Args:
        folder: Folder of the files; it is made when the first reply is stored.
        rank: Index of this process.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder, self.path = folder, folder / f"samples-{rank}.jsonl"
        self._lines = Lines(self.path, folder.glob("samples-*.jsonl"))
        self.known = {
            key: Reply(str(row["text"]), bool(row["ended"]))
            for key, row in self._lines.rows.items()
            if "text" in row and "ended" in row
        }

    def add(self, replies: Iterable[tuple[str, Reply]]) -> None:
        """Store replies durably.

        Raises:
            DiskError: If the file cannot be written.
        """
        kept = dict(replies)
        self.known.update(kept)
        self._lines.add({"key": key, "text": r.text, "ended": r.ended} for key, r in kept.items())
