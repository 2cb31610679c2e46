"""The tables of the documentation that are made from the code. `python -m tests.docs_tables` writes them anew."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

from selfaug.cli.options import DIFFERENT_DEFAULTS
from selfaug.data.formats import FORMATS
from selfaug.data.formats.shapes import SHAPES
from selfaug.methods import METHODS, Method

ROOT = Path(__file__).resolve().parents[1]


def defaults() -> str:
    rows = [
        f"| `--{n}` | {d.trl if d.trl is not None else 'not set'} | {d.shown} | {d.why} |"
        for n, d in DIFFERENT_DEFAULTS.items()
    ]
    return "\n".join(["| flag | `trl sft` | here | why |", "|---|---|---|---|", *rows])


def formats() -> str:
    paths = {shape.name: shape.paths for shape in SHAPES}

    def read(name: str) -> str:
        shown = ("question", "documents", "documents.relevant", "answer", "answerable")
        fields = {field: paths[name][field] for field in shown if field in paths.get(name, {})}
        return ", ".join(f"{field} = `{path.replace(' | ', '` or `')}`" for field, path in fields.items())

    rows = [f"| `{name}` | {format_.about} | {read(name)} |" for name, format_ in FORMATS.items()]
    return "\n".join(["| `--format` | rows | where a record's fields stand |", "|---|---|---|", *rows])


def methods() -> str:
    def options(method: Method) -> str:
        found = [f"`{f.name}` ({shown(f.default)}): {f.metadata['help']}" for f in dataclasses.fields(method.Options)]
        return " ".join(found)

    def shown(default: object) -> object:
        return "none" if default is None else round(default, 4) if isinstance(default, float) else default

    def source(method: Method) -> str:
        numbers = re.sub(r"(\d{4}\.\d{5})", r"[\1](https://arxiv.org/abs/\1)", method.source)
        return numbers or "-"

    def row(name: str, m: Method) -> str:
        cells = (f"`{name}`", m.summary, m.formula, source(m), m.differs, m.needs, options(m))
        return f"| {' | '.join(cell or '-' for cell in cells)} |"

    rows = [row(name, method) for name, method in METHODS.items()]
    head = "| `--method` | what it does | loss | source | differs from its source in | needs | options (default) |"
    return "\n".join([head, "|---|---|---|---|---|---|---|", *rows])


TABLES: dict[str, tuple[Path, Callable[[], str]]] = {
    "defaults": (ROOT / "docs" / "train.md", defaults),
    "formats": (ROOT / "docs" / "data.md", formats),
    "methods": (ROOT / "docs" / "methods.md", methods),
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
