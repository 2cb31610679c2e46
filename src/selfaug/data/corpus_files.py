"""Reads the passages of a file or folder."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from selfaug.common.errors import DataError
from selfaug.common.files import read_text
from selfaug.data.fields import RowError, Where, present
from selfaug.data.files import data_files, is_data_file, iter_rows, table_rows
from selfaug.data.record import DOCUMENT_PARTS, TEXT_NAMES, Document, parse_document

__all__ = ["corpus_files", "read_passages"]

_TEXT = (".txt", ".md")
# Largest number of words of a passage from a text file. DPR's passages have 100, which cuts many answers off.
_PASSAGE_WORDS = 200
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
_SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|\n")


def corpus_files(path: Path) -> list[Path]:
    """Return the files of a corpus: the file itself, or those of a folder in the order of their names.

    Raises:
        DataError: If the path does not exist.
    """
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file() and _kind(file))
    return data_files(path)


def read_passages(path: Path) -> Iterator[Document]:
    """Yield the passages of a corpus.

    - ``.jsonl``, ``.json``, ``.csv``, ``.tsv``, ``.parquet`` (also compressed): one passage a row, as
      :func:`selfaug.data.record.parse_document` reads it: FlashRAG, BEIR, LangChain, LlamaIndex and others.
    - ``.tsv`` without a header: DPR's ``id, text, title``.
    - ``.txt``, ``.md``: passages of at most some 200 words, cut at blank lines, with the file's name as title.
    - A folder: all such files in it, in the order of their names.

    Raises:
        DataError: If the path does not exist, the file is of another type, or a row is not a passage.
    """
    found = False
    for file in corpus_files(path):
        for passage in _passages(file):
            found = True
            yield passage
    if not found:
        raise DataError(f"{path}: the corpus holds no passage", "give at least one.")


def _kind(path: Path) -> str:
    return "text" if path.suffix.lower() in _TEXT else "rows" if is_data_file(path) else ""


def _passages(path: Path) -> Iterator[Document]:
    if _kind(path) == "text":
        yield from _cut(path)
        return
    for where, row in _dpr(path) if _has_no_header(path) else iter_rows(path):
        if isinstance(row, RowError):
            raise row
        row = present(row)
        if row.get("title") and not any(str(row.get(name) or "").strip() for name in (*TEXT_NAMES, "node", "document")):
            row = {**row, "text": row["title"], "title": None}  # BEIR has articles that consist of their title
        yield parse_document(row, where, "")


def _has_no_header(path: Path) -> bool:
    """Tell whether a file is DPR's table, whose first row is a passage instead of column names."""
    if path.suffix.lower() != ".tsv":
        return False
    with path.open("rb") as stream:
        cells = stream.readline().decode("utf-8-sig", "replace").split("\t")
    return not DOCUMENT_PARTS & {cell.strip().strip('"').lower() for cell in cells}


def _dpr(path: Path) -> Iterator[tuple[Where, Mapping[str, Any] | RowError]]:
    with path.open("rb") as stream:
        cells = stream.readline().count(b"\t") + 1
        stream.seek(0)
        yield from table_rows(path, stream, ".tsv", ("id", "text", "title")[: 2 if cells == 2 else 3])


def _cut(path: Path) -> Iterator[Document]:
    """Yield passages of whole paragraphs; a paragraph longer than a passage is cut between sentences."""
    text = read_text(path)
    number = itertools.count(1)
    passage_, length = "", 0
    for paragraph in filter(str.strip, _PARAGRAPH.split(text)):
        units = [paragraph] if len(paragraph.split()) <= _PASSAGE_WORDS else _SENTENCE.split(paragraph)
        for n, unit in enumerate(units):
            if passage_ and length + len(unit.split()) > _PASSAGE_WORDS:
                yield Document(passage_, path.stem, f"{path.name}#{next(number)}")
                passage_, length = "", 0
            gap = "" if not passage_ else "\n\n" if n == 0 else " "
            passage_ += gap + unit.strip()
            length += len(unit.split())
    if passage_:
        yield Document(passage_, path.stem, f"{path.name}#{next(number)}")
