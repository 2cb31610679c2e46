"""The tables of the documentation that are made from the code. `python -m tests.docs_tables` writes them anew."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from selfaug.cli.options import DIFFERENT_DEFAULTS
from selfaug.data.formats import FORMATS

ROOT = Path(__file__).resolve().parents[1]


def defaults() -> str:
    rows = [
        f"| `--{n}` | {d.trl if d.trl is not None else 'not set'} | {d.shown} | {d.why} |"
        for n, d in DIFFERENT_DEFAULTS.items()
    ]
    return "\n".join(["| flag | `trl sft` | here | why |", "|---|---|---|---|", *rows])


def formats() -> str:
    def first_line(name: str) -> str:
        lines = (sys.modules[FORMATS[name].parse.__module__].__doc__ or "").splitlines()
        return lines[0].replace("``", "`")

    rows = [f"| `{name}` | {first_line(name)} |" for name in FORMATS]
    return "\n".join(["| `--format` | rows |", "|---|---|", *rows])


TABLES: dict[str, tuple[Path, Callable[[], str]]] = {
    "defaults": (ROOT / "docs" / "train.md", defaults),
    "formats": (ROOT / "docs" / "data.md", formats),
}


def between(name: str, text: str) -> re.Match[str]:
    """The part of ``text`` that the table fills."""
    match = re.search(rf"<!-- {name}:begin -->\n(.*?)<!-- {name}:end -->", text, flags=re.DOTALL)
    assert match is not None, f"no place for the table {name}"
    return match


if __name__ == "__main__":
    for table, (page, make) in TABLES.items():
        text = page.read_text(encoding="utf-8")
        match = between(table, text)
        page.write_text(text[: match.start(1)] + make() + "\n" + text[match.end(1) :], encoding="utf-8")
