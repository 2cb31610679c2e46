"""Which passages does this file or folder hold?"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from selfaug.data.fields import Fields, RowError, Where
from selfaug.data.files import data_files, is_data_file, iter_rows
from selfaug.data.formats.ctxs import passage
from selfaug.data.record import Document
from selfaug.errors import DataError

__all__ = ["read_passages"]

_TEXT = (".txt", ".md")
_WORDS = 200  # A passage cut from a text file has at most so many; DPR's have 100, which cuts many answers off.
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
_SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|\n")


def read_passages(path: Path) -> list[Document]:
    """The passages of a corpus.

    - ``.jsonl``, ``.json``, ``.parquet`` (also packed): one passage a row, ``text`` or ``contents`` (the first line is
      the title) or ``content``, with ``title`` and ``id`` or ``_id`` where they have them: FlashRAG, BEIR and others.
    - ``.tsv``: DPR's ``id, text, title``, with or without that header.
    - ``.txt``, ``.md``: cut at blank lines into passages of about 200 words, titled by the file's name.
    - A folder: all of these in it, in the order of their names.

    Raises:
        DataError: If the path does not exist, is of another kind, or a row is not a passage.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and _kind(file))
    else:
        files = data_files(path)
    documents = [document for file in files for document in _passages(file)]
    if not documents:
        raise DataError(f"{path}: the corpus holds no passage", "give at least one.")
    return documents


def _kind(path: Path) -> str:
    if path.suffix.lower() in _TEXT:
        return "text"
    return ("tsv" if path.suffix.lower() == ".tsv" else "rows") if is_data_file(path) else ""


def _passages(path: Path) -> Iterator[Document]:
    kind = _kind(path)
    if kind == "text":
        yield from _cut(path)
    elif kind == "tsv":
        yield from _dpr(path)
    else:
        for where, row in iter_rows(path):
            if isinstance(row, RowError):
                raise row
            yield passage(Fields(row, where))


def _cut(path: Path) -> Iterator[Document]:
    """Passages of whole paragraphs; a paragraph longer than a passage is cut at the ends of its sentences."""
    try:
        text = path.read_text("utf-8-sig").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})", "save the file as UTF-8.") from None
    number = itertools.count(1)
    passage_, length = "", 0
    for paragraph in filter(str.strip, _PARAGRAPH.split(text)):
        units = [paragraph] if len(paragraph.split()) <= _WORDS else _SENTENCE.split(paragraph)
        for n, unit in enumerate(units):
            if passage_ and length + len(unit.split()) > _WORDS:
                yield Document(passage_, path.stem, f"{path.name}#{next(number)}")
                passage_, length = "", 0
            gap = "" if not passage_ else "\n\n" if n == 0 else " "
            passage_ += gap + unit.strip()
            length += len(unit.split())
    if passage_:
        yield Document(passage_, path.stem, f"{path.name}#{next(number)}")


def _dpr(path: Path) -> Iterator[Document]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            for number, cells in enumerate(csv.reader(stream, delimiter="\t"), 1):
                if number == 1 and cells[:2] == ["id", "text"]:
                    continue
                where = Where(str(path), number, "row")
                if len(cells) not in (2, 3):
                    raise RowError(where, "", "2 or 3 cells: id, text, title", str(len(cells)))
                yield passage(Fields(dict(zip(("id", "text", "title"), cells, strict=False)), where))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error})", "give a UTF-8 table of id, text, title.") from None
