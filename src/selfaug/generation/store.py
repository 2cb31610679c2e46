"""Replies on disk, appended one line each as they come, so that an interrupted generation goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from selfaug.common.store import DiskError
from selfaug.generation.requests import Reply

__all__ = ["FOLDER", "Store"]

FOLDER = "generated"


class Store:
    """Replies by the keys of their requests, in ``samples-RANK.jsonl`` files of one folder.

    Every rank reads all files and writes its own.

    Args:
        folder: Made when the first reply is kept.
        rank: Of this process.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder, self.path = folder, folder / f"samples-{rank}.jsonl"
        self.known: dict[str, Reply] = {}
        for path in sorted(folder.glob("samples-*.jsonl")):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    row = json.loads(line)
                    self.known[str(row["key"])] = Reply(str(row["text"]), bool(row["ended"]))
                except (ValueError, KeyError, TypeError):
                    continue  # the last line of a killed run

    def add(self, replies: Iterable[tuple[str, Reply]]) -> None:
        """Keep replies, durably.

        Raises:
            DiskError: If the file cannot be written.
        """
        kept = dict(replies)
        self.known.update(kept)
        lines = [json.dumps({"key": key, "text": r.text, "ended": r.ended}) + "\n" for key, r in kept.items()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                if file.tell() and not self._ends_a_line(file.tell()):
                    file.write(b"\n")  # a torn line stays one of its own
                file.write("".join(lines).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DiskError(
                f"{self.path} cannot be written: {error.strerror or error}",
                "free some space, then run the same command again: samples so far are kept.",
            ) from error

    def _ends_a_line(self, size: int) -> bool:
        with self.path.open("rb") as file:
            file.seek(size - 1)
            return file.read(1) == b"\n"
