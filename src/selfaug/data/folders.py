"""Which file of a folder of data is a split of it? As `selfaug prepare` writes them, or a saved export of the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["HELD_OUT", "split_file"]

HELD_OUT = ("test", "held_out", "validation", "dev")
"""Names of splits that nothing is trained on; the first that is there is taken."""


def split_file(name: str, splits: Sequence[str]) -> Path | None:
    """The first file ``SPLIT.*`` of the folder ``name``, splits in the order given; ``None`` where there is none."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return None
    found = (path for split in splits for path in sorted(folder.glob(f"{split}.*")) if path.is_file())
    return next(found, None)
