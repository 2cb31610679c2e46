"""Finds the data files of a path, and reads their rows, also from compressed files."""

from __future__ import annotations

import ast
import bz2
import csv
import gzip
import io
import json
import os
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Any

from selfaug.common.errors import DataError, nearest
from selfaug.data.fields import RowError, Where, present, shown
from selfaug.data.folders import Splits, choose, is_named, missing_shards, splits_of

__all__ = [
    "SUFFIXES", "Found", "count_lines", "data_files", "find_files", "has_split", "is_data_file", "iter_rows",
    "table_rows",
]  # fmt: skip

_OPENERS: dict[str, Callable[[Path], IO[bytes]]] = {
    ".gz": lambda path: gzip.GzipFile(path),  # type: ignore[dict-item, return-value]
    ".bz2": lambda path: bz2.BZ2File(path),
}
_LINES = (".jsonl", ".ndjson")
_TABLES = (".csv", ".tsv")
SUFFIXES = (*_LINES, ".json", *_TABLES, ".parquet")
_MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"PAR1": ".parquet"}
_READABLE = ".jsonl, .json, .csv, .tsv, .parquet, each but the last also as .gz or .bz2, or a folder of these"
# SQuAD, CoQA, LlamaIndex and others wrap their rows in one of these.
_WRAPPERS = ("data", "examples", "rows", "records")
_MCTEST = 23  # number of cells of a row
_LONGEST_CELL = 2**31 - 1  # characters; the csv module's default of 131,072 is too small for long documents
_NO_DATA = frozenset({"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"})  # as on the Hub
# Files that mark adapters, models, and runs of `selfaug train`, which may be inside the folder of their data.
_NO_DATA_FOLDERS = ({"adapter_config.json"}, {"tokenizer_config.json"}, {"manifest.json", "config.yaml"})
# Suffixes of files that probably hold data that we cannot read.
_UNREAD = frozenset({".arrow", ".avro", ".feather", ".lz4", ".orc", ".tar", ".xlsx", ".xz", ".zip", ".zst", ".7z"})
_MAX_LISTED = 8  # number of file names in a message

RowOrError = Mapping[str, Any] | RowError


def kind_of(path: Path) -> tuple[str, str]:
    """Return the suffixes of a file's data and compression: (".jsonl", ".gz") for ``a.jsonl.gz``; empty for none."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    packing = suffixes.pop() if suffixes and suffixes[-1] in _OPENERS else ""
    inner = suffixes[-1] if suffixes else ""
    # A compressed file without a data suffix (dev_v4.bz2) is read as lines.
    return (inner if inner in SUFFIXES or not packing else ""), packing


def is_data_file(path: Path) -> bool:
    """Tell by its name whether a file is a data file."""
    inner, packing = kind_of(path)
    return not path.name.startswith(".") and (inner in SUFFIXES or bool(packing))


@dataclass(frozen=True)
class Found:
    """The data files of a path.

    Args:
        files: Files in the order of their names.
        split: Split that the files of a folder form; ``None`` for a file, and for a folder whose files name no split.
        note: Sentence about which files of a folder are read and which are not; empty where there is no choice.
    """

    files: tuple[Path, ...]
    split: str | None = None
    note: str = ""


def data_files(path: Path, split: str | Sequence[str] = "train") -> list[Path]:
    """Return the data files of a path; see :func:`find_files`."""
    return list(find_files(path, split).files)


def find_files(path: Path, split: str | Sequence[str] = "train") -> Found:
    """Return a file itself, or the files of one split from a folder and its subfolders.

    :mod:`selfaug.data.folders` says which names mean which split. Where no file names a split, the files of the folder
    are one data set, whatever ``split`` is; subfolders are then read only if the folder has no data file of its own.

    Args:
        path: File or folder.
        split: Name of the split, or names, of which the first available one is taken.

    Raises:
        DataError: If the path does not exist, the folder has no data file, only some of its files name a split, no
            file is of the wanted split, or a numbered shard of it is missing.
    """
    wanted = (split,) if isinstance(split, str) else tuple(split)
    try:
        if path.is_file():
            return Found((path,), note=_one_of_several(path))
        if not path.is_dir():
            beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
            raise DataError(
                f"{path}: no such file or folder.{nearest(path.name, beside)}",
                "check the path, or give a data set name of the hub as org/name.",
            )
        names, unread = _listed(path)
    except DataError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise DataError(f"{path}: cannot be opened ({error})", "check the path and its permissions.") from None
    if not names:
        raise DataError(f"{path}: the folder holds no data file", f"put data there as {_READABLE}.")
    splits = splits_of(names)
    picked = _pick(splits, names, wanted)
    if picked is None and not splits.named():
        chosen = [name for name in names if len(name.parts) == 1] or names
        _check_whole(path, chosen)
        return Found(_below(path, chosen), None, _note_of_all(path, chosen, names))
    there = "; ".join(f"{name} ({_listing(files)})" for name, files in splits.files.items())
    unnamed = [name for name in splits.unnamed if picked is None or name not in picked[1]]
    if unnamed and splits.named():
        raise DataError(
            f"{path}: some files name a split and others do not, so it is not clear what the others are."
            f" No split: {_listing(unnamed)}. Splits: {there}",
            "rename those without so that they name one (train, validation, test), move them elsewhere, or give the"
            " file itself.",
        )
    if picked is None:
        raise DataError(
            f"{path}: no file is of the split {' or '.join(wanted)}; there is {there}",
            f"give the file itself, or name the split: --split {next(iter(splits.files))} for `selfaug prepare`,"
            " --dataset_train_split for `selfaug train`.",
        )
    name, chosen = picked
    lost = [other for other in unread if choose(splits_of([other]).files, (name,))]
    if lost:
        raise DataError(
            f"{path}: {_listing(lost)} belongs to the split {name} by its name, and cannot be read",
            f"convert it or move it elsewhere; what is read is {_READABLE}.",
        )
    _check_whole(path, chosen)
    others = "; ".join(f"{other} ({_listing(files)})" for other, files in splits.files.items() if other != name)
    note = f"{path}: the split {name} is read: {_listing(chosen)}." + (f" Not read: {others}." if others else "")
    return Found(_below(path, chosen), name, note + _twice(chosen))


def has_split(path: Path, wanted: Sequence[str]) -> bool:
    """Tell whether a path is a folder or a saved data set with one of these splits."""
    if not path.is_dir():
        return False
    saved = _saved_splits(path)
    if saved is not None:
        return choose(saved, wanted) is not None
    names, _ = _listed(path)
    return _pick(splits_of(names), names, wanted) is not None


def _saved_splits(path: Path) -> list[str] | None:
    """Return the splits of a data set saved with ``DatasetDict.save_to_disk``; ``None`` for any other folder."""
    try:
        return list(json.loads((path / "dataset_dict.json").read_text("utf-8"))["splits"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _listed(folder: Path) -> tuple[list[PurePath], list[PurePath]]:
    """Return the data files in a folder and its subfolders, and those of types that cannot be read; relative paths."""
    found: list[PurePath] = []
    unread: list[PurePath] = []
    seen = {folder.resolve()}
    for root, inside, files in os.walk(folder, followlinks=True, onerror=_raise):
        here, names = Path(root), set(files)
        if here != folder and any(marks <= names for marks in _NO_DATA_FOLDERS):
            inside.clear()
            continue
        for name in sorted(inside):
            real = (here / name).resolve()
            if name.startswith(".") or real in seen:
                inside.remove(name)
            seen.add(real)
        for name in files:
            path = here / name
            if name in _NO_DATA or (name == "state.json" and "dataset_info.json" in names) or _is_report(path, names):
                continue
            if is_data_file(path):
                found.append(path.relative_to(folder))
            elif path.suffix.lower() in _UNREAD and not name.startswith("."):
                unread.append(path.relative_to(folder))
    return sorted(found), sorted(unread)


def _raise(error: OSError) -> None:
    raise error


def _is_report(path: Path, beside: set[str]) -> bool:
    """Tell whether a file is the report that `selfaug prepare` writes beside its rows."""
    if path.name != "report.json" or "train.jsonl" not in beside:
        return False
    with path.open("rb") as stream:
        return b'"selfaug"' in stream.read(64)


def _pick(splits: Splits, names: Sequence[PurePath], wanted: Sequence[str]) -> tuple[str, list[PurePath]] | None:
    """Return the first wanted split that is available, and its files; its name may be any word."""
    for want in wanted:
        name = choose(splits.files, (want,))
        if name is not None:
            return name, splits.files[name]
        chosen = [path for path in names if is_named(path, want)]
        if len(splits_of(chosen).files) > 1:
            raise DataError(
                f"the name {want!r} stands in files of several splits: {_listing(chosen)}", "give the file itself."
            )
        if chosen:
            return want, chosen
    return None


def _below(folder: Path, names: Iterable[PurePath]) -> tuple[Path, ...]:
    return tuple(folder / name for name in names)


def _check_whole(folder: Path, names: Sequence[PurePath]) -> None:
    missing = missing_shards(names)
    if missing:
        raise DataError(
            f"{folder}: {missing[0]} is missing, and the names of the others say that there is one",
            "get the file; or give a file itself, to read that one alone.",
        )


def _one_of_several(path: Path) -> str:
    if not missing_shards([PurePath(path.name)]):
        return ""
    return f"{path}: by its name it is one of several shards; it alone is read. Give its folder to read all of them."


def _note_of_all(folder: Path, chosen: Sequence[PurePath], names: Sequence[PurePath]) -> str:
    left = sorted({path.parts[0] for path in names} - {path.parts[0] for path in chosen})
    note = f" The folders inside are not read: {', '.join(left)}." if left else ""
    if len(chosen) > 1:
        choice = f"None of its {len(chosen)} files names a split, so they are read as one data set"
        note = f" {choice}: {_listing(chosen)}.{note}"
    return f"{folder}:{note}{_twice(chosen)}" if note else ""


def _twice(names: Sequence[PurePath]) -> str:
    """Return a warning about files whose names differ only in suffixes: they probably contain the same rows."""
    alike: defaultdict[str, list[PurePath]] = defaultdict(list)
    for name in names:
        alike[str(name)[: len(str(name)) - len("".join(kind_of(Path(name))))].casefold()].append(name)
    pairs = [_listing(same) for same in alike.values() if len(same) > 1]
    return f" Careful: {'; '.join(pairs)} differ only in their suffixes, and all are read." if pairs else ""


def _listing(names: Sequence[PurePath]) -> str:
    listed = ", ".join(map(str, names[:_MAX_LISTED]))
    return listed + (f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else "")


def count_lines(path: Path) -> int | None:
    """Return the number of line breaks in a file of lines, about its number of rows; ``None`` for other files."""
    if kind_of(path) not in [(suffix, "") for suffix in _LINES]:
        return None
    with path.open("rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))


def iter_rows(path: Path) -> Iterator[tuple[Where, RowOrError]]:
    """Yield each row of a file with its place, and an error in the place of a row that cannot be read.

    Line files are streamed. Blank lines are skipped.

    Raises:
        DataError: If the file as a whole cannot be read: it is missing, empty, binary, truncated, or not JSON.
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
            elif inner == ".tsv" and _answers(path).is_file():
                yield from _mctest(path, stream)
            elif inner in _TABLES:
                yield from table_rows(path, stream, inner)
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
    named = packing or inner
    for magic, suffix in _MAGIC.items():
        if head.startswith(magic) and suffix != named:
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
        except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
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
        if error.msg == "Extra data" and error.lineno > 1:  # many files named .json have one object on each line
            yield from _lines(path, io.BytesIO(raw))
            return
        at = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise DataError(f"{path}, {at}: the file is not JSON", "mend the JSON at that place.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: the JSON cannot be read ({type(error).__name__})", "check how it was made.") from None
    if isinstance(document, Mapping):
        document = _rows_of(document)
    if not isinstance(document, list):
        raise DataError(f"{path}: expected a list of objects, received {shown(document)}", "give a list of rows.")
    for number, row in enumerate(document, 1):
        where = Where(str(path), number, "row")
        yield where, _object(row, where)


def _rows_of(document: Mapping[str, Any]) -> list[Any]:
    wrapped: list[Any] | None = next((document[key] for key in _WRAPPERS if isinstance(document.get(key), list)), None)
    if wrapped is not None:
        return wrapped
    inner = list(document.values())
    if not inner or not all(isinstance(value, Mapping) and value for value in inner):
        return [document]
    places = inner[0].keys()
    if all(key.isdecimal() for key in places) and all(value.keys() == places for value in inner):
        # The document is columns, as in files of pandas and MS MARCO: {"query": {"0": ..., "1": ...}, ...}.
        return [{key: value[place] for key, value in document.items()} for place in places]
    # The document is rows by id, as in PubMedQA.
    return [value if "id" in value else {"id": key, **value} for key, value in document.items()]


def table_rows(
    path: Path, stream: IO[bytes], kind: str, header: Sequence[str] = ()
) -> Iterator[tuple[Where, RowOrError]]:
    """Yield the rows of a CSV or TSV file: an empty cell is absent, and a cell with a list or object is parsed.

    Args:
        path: Path of the file, for messages.
        stream: Bytes of the file.
        kind: ".csv" or ".tsv".
        header: Names of the columns, where the first row does not give them.

    Raises:
        DataError: If the text is no UTF-8, or the first row names no columns.
    """
    csv.field_size_limit(_LONGEST_CELL)
    text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
    names = list(header)
    try:
        first = "" if names else text.readline()
        separator = "\t" if kind == ".tsv" else max(",;\t|", key=first.count) if not names else ","
        rows = csv.reader(_chained(first, text), delimiter=separator, strict=True)
        while True:
            where = Where(str(path), rows.line_num + 1)
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                hint = "a cell with quotation marks in it stands in quotation marks, and each inside is written twice"
                yield where, RowError(where, "", "cells as a table has them", str(error), hint)
                continue
            if not any(cell.strip() for cell in cells):
                continue
            if not names:
                names = [cell.strip() for cell in cells]
                if len(cells) == _MCTEST and cells[1].startswith("Author:"):
                    raise DataError(
                        f"{path}: these are stories of MCTest, and their answers, {path.stem}.ans, are not beside them",
                        f"put {path.stem}.ans there.",
                    )
                if not all(names) or len(set(names)) < len(names):
                    raise DataError(
                        f"{path}: the first row is {shown(names)}, and each column needs a name of its own",
                        "write the columns' names into the first row.",
                    )
            elif len(cells) != len(names):
                expected = f"{len(names)} cells ({', '.join(names)[:120]})"
                yield where, RowError(where, "", expected, f"{len(cells)} cells")
            else:
                yield where, _cells(names, cells, where)
    except UnicodeDecodeError as error:
        what = f"byte 0x{error.object[error.start]:02x} is not UTF-8 text"
        raise DataError(f"{path}: {what}", "save the file as UTF-8 (in Excel: CSV UTF-8).") from None


def _chained(first: str, rest: Iterator[str]) -> Iterator[str]:
    if first:
        yield first
    yield from rest


def _cells(names: Sequence[str], cells: Sequence[str], where: Where) -> RowOrError:
    row: dict[str, Any] = {}
    for name, cell in zip(names, cells, strict=True):
        text = cell.strip()
        if not text:
            continue
        row[name] = cell
        if (text[0], text[-1]) not in (("[", "]"), ("{", "}")):
            continue
        try:
            row[name] = json.loads(text)
        except (ValueError, RecursionError):
            value = _python(text)
            if value is not None:
                row[name] = value
            elif text.startswith(("['", '["', "{'", '{"', "[{")):  # such as numpy's ['a' 'b'], without commas
                return RowError(where, name, "a list or an object as JSON", shown(text))
    return row


def _python(text: str) -> Any:
    """Return the list or object whose ``repr`` the text is, as pandas writes them; ``None`` for any other text."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, list | dict) and repr(value) == text else None


def _answers(path: Path) -> Path:
    """Return the path of the answers to a file of MCTest's stories."""
    return path.with_name(path.name[: path.name.lower().rindex(".tsv")] + ".ans")


def _mctest(path: Path, stream: IO[bytes]) -> Iterator[tuple[Where, RowOrError]]:
    answers = _answers(path)
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
                    exact = {field.name for field in batch.schema if "arrow.json" in str(field.type)}
                    kept = {key: _from_json(row[key]) for key in exact if row[key] is not None}
                    yield Where(str(path), number, "row"), {**present(row), **kept}
    except (pyarrow.ArrowException, ValueError) as error:
        raise DataError(f"{path}: is damaged or no parquet ({error})", "make or download the file again.") from None


def _from_json(value: Any) -> Any:
    """Parse a value of a column of JSON texts, in which ``datasets`` stores objects of different shapes."""
    if isinstance(value, list):
        return [_from_json(inner) for inner in value]
    return json.loads(value) if isinstance(value, str) else value


def _object(row: object, where: Where) -> RowOrError:
    return row if isinstance(row, Mapping) else RowError(where, "", "a JSON object", shown(row))
