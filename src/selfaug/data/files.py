"""Which rows does this file hold, whatever it is packed in?"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from selfaug.data.fields import RowError, Where, shown
from selfaug.errors import DataError, nearest

__all__ = ["SUFFIXES", "data_files", "is_data_file", "iter_rows"]

_OPENERS: dict[str, Callable[[Path], IO[bytes]]] = {
    ".gz": lambda path: gzip.GzipFile(path),  # type: ignore[dict-item, return-value]
    ".bz2": lambda path: bz2.BZ2File(path),
}
_LINES = (".jsonl", ".ndjson")
SUFFIXES = (*_LINES, ".json", ".tsv", ".parquet")
_MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"PAR1": ".parquet"}
_READABLE = ".jsonl, .json, .tsv (with .ans), .parquet, each but the last also as .gz or .bz2, or a folder of these"

RowOrError = Mapping[str, Any] | RowError


def kind_of(path: Path) -> tuple[str, str]:
    """The suffixes of the data and of its packing: ``a.jsonl.gz`` has (".jsonl", ".gz"), ``a.bz2`` has ("", ".bz2")."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    packing = suffixes.pop() if suffixes and suffixes[-1] in _OPENERS else ""
    inner = suffixes[-1] if suffixes else ""
    # A packed file without a data suffix of its own (dev_v4.bz2) is tried as lines.
    return (inner if inner in SUFFIXES or not packing else ""), packing


def is_data_file(path: Path) -> bool:
    """Whether the name says that this is a data file."""
    inner, packing = kind_of(path)
    return not path.name.startswith(".") and (inner in SUFFIXES or bool(packing))


def data_files(path: Path) -> list[Path]:
    """The file itself, or the data files of a folder in the order of their names (folders inside are not entered).

    Raises:
        DataError: If the path does not exist or the folder holds no data file.
    """
    try:
        if path.is_file():
            return [path]
        if not path.is_dir():
            beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
            raise DataError(
                f"{path}: no such file or folder.{nearest(path.name, beside)}",
                "check the path, or give a data set name of the hub as org/name.",
            )
        found = sorted(file for file in path.iterdir() if file.is_file() and is_data_file(file))
    except DataError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path.
        raise DataError(f"{path}: cannot be opened ({error})", "check the path and its permissions.") from None
    if not found:
        raise DataError(f"{path}: the folder holds no data file", f"put data there as {_READABLE}.")
    return found


def iter_rows(path: Path) -> Iterator[tuple[Where, RowOrError]]:
    """Each row of a file with its place; a row that is broken on its own comes as an error instead.

    Line files are read as they stream. Blank lines are skipped.

    Raises:
        DataError: If the file as a whole cannot be read: it is missing, empty, binary, cut short, or not JSON.
    """
    inner, packing = kind_of(path)
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty", "give a file with at least one row.")
        _check_magic(path, inner, packing)
        if inner == ".parquet":
            yield from _parquet(path)
            return
        with _OPENERS[packing](path) if packing else path.open("rb") as stream:
            if inner == ".json":
                yield from _document(path, stream)
            elif inner == ".tsv":
                yield from _tsv(path, stream)
            elif inner in _LINES or packing:
                yield from _lines(path, stream)
            else:
                raise DataError(
                    f"{path}: the suffix {path.suffix!r} is not one that is read.{nearest(path.suffix, SUFFIXES)}",
                    f"give the data as {_READABLE}.",
                )
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", "check the path.") from None
    except (OSError, EOFError, zlib.error) as error:
        what = "is damaged or cut short" if packing else "cannot be read"
        raise DataError(f"{path}: {what} ({error})", "make or download the file again.") from None


def _check_magic(path: Path, inner: str, packing: str) -> None:
    with path.open("rb") as stream:
        head = stream.read(4096)
    told = packing or inner
    for magic, suffix in _MAGIC.items():
        if head.startswith(magic) and suffix != told:
            raise DataError(
                f"{path}: the content is {suffix.removeprefix('.')} data, which its name does not say",
                f"name it {path.name}{suffix}.",
            )
    if packing or inner == ".parquet":
        return
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: the text is UTF-16, and UTF-8 is needed", "save the file as UTF-8.")
    if b"\0" in head:
        raise DataError(f"{path}: the file is binary, not text", f"give the data as {_READABLE}.")


def _lines(path: Path, stream: IO[bytes]) -> Iterator[tuple[Where, RowOrError]]:
    for number, raw in enumerate(stream, 1):
        where = Where(str(path), number)
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
            if b"\0" in raw[:4096]:
                raise DataError(f"{path}: the content is binary, not text", f"give the data as {_READABLE}.")
        if not raw.strip():
            continue
        try:
            row = json.loads(raw.decode())
        except UnicodeDecodeError as error:
            yield where, RowError(where, "", "UTF-8 text", f"byte 0x{raw[error.start]:02x} at column {error.start + 1}")
        except json.JSONDecodeError as error:
            expected = f"one JSON object on the line ({error.msg} at column {error.colno})"
            hint = "a JSON file of several lines is read under the name .json" if number == 1 else ""
            yield where, RowError(where, "", expected, shown(raw.decode().strip()), hint)
        except (ValueError, RecursionError) as error:  # A number of thousands of digits; thousands of brackets.
            yield where, RowError(where, "", "one JSON object on the line", type(error).__name__)
        else:
            yield where, _object(row, where)


def _document(path: Path, stream: IO[bytes]) -> Iterator[tuple[Where, RowOrError]]:
    raw = stream.read().removeprefix(b"\xef\xbb\xbf")
    if not raw.strip():
        raise DataError(f"{path}: the file holds only blank space", "give a file with at least one row.")
    try:
        document = json.loads(raw.decode())
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        what = f"byte 0x{raw[error.start]:02x} on line {line} is not UTF-8 text"
        raise DataError(f"{path}: {what}", "save the file as UTF-8.") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and error.lineno > 1:  # Many files named .json hold one object a line.
            yield from _lines(path, io.BytesIO(raw))
            return
        at = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise DataError(f"{path}, {at}: the file is not JSON", "mend the JSON at that place.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: the JSON cannot be read ({type(error).__name__})", "check how it was made.") from None
    if isinstance(document, Mapping):
        # SQuAD and others wrap their rows in {"version": ..., "data": [...]}.
        document = document["data"] if isinstance(document.get("data"), list) else [document]
    if not isinstance(document, list):
        raise DataError(f"{path}: expected a list of objects, received {shown(document)}", "give a list of rows.")
    for number, row in enumerate(document, 1):
        where = Where(str(path), number, "row")
        yield where, _object(row, where)


def _tsv(path: Path, stream: IO[bytes]) -> Iterator[tuple[Where, RowOrError]]:
    answers = path.with_name(path.name[: path.name.lower().rindex(".tsv")] + ".ans")
    if not answers.is_file():
        raise DataError(
            f"{path}: its answers, {answers.name}, are not beside it; .tsv is read as MCTest",
            f"put {answers.name} there, or give other data as .jsonl.",
        )
    letters = [line.split("\t") for line in answers.read_text("utf-8", "replace").splitlines()]
    number = 0
    for number, raw in enumerate(stream, 1):
        where = Where(str(path), number)
        try:
            cells = raw.decode().rstrip("\r\n").split("\t")
        except UnicodeDecodeError as error:
            yield where, RowError(where, "", "UTF-8 text", f"byte 0x{raw[error.start]:02x} at column {error.start + 1}")
            continue
        if number > len(letters):
            raise DataError(f"{answers}: {len(letters)} lines, fewer than {path.name} has", "give a line per story.")
        yield where, {"tsv": cells, "ans": letters[number - 1]}
    if number != len(letters):
        raise DataError(f"{answers}: {len(letters)} lines, but {path.name} has {number}", "give a line per story.")


def _parquet(path: Path) -> Iterator[tuple[Where, RowOrError]]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield Where(str(path), number, "row"), row
    except (pyarrow.ArrowException, ValueError) as error:
        raise DataError(f"{path}: is damaged or no parquet ({error})", "make or download the file again.") from None


def _object(row: object, where: Where) -> RowOrError:
    return row if isinstance(row, Mapping) else RowError(where, "", "a JSON object", shown(row))
