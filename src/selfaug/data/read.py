"""Which training examples does this path or data set name hold?"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from selfaug.data.fields import Fields, RowError, Where
from selfaug.data.files import SUFFIXES, Found, find_files, iter_rows
from selfaug.data.folders import choose
from selfaug.data.formats import Format, detect, get_format
from selfaug.data.record import Conversation, Item
from selfaug.errors import ConfigError, DataError, nearest
from selfaug.terminal import say

__all__ = ["Loaded", "hub_split", "read_rows"]

Kind = Literal["record", "conversation", "trl"]
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LOOKED_AT = 32  # Rows from which a format is told: enough to outvote a few bad ones.
_SAVED = ("dataset_info.json", "dataset_dict.json")  # What save_to_disk leaves behind.
_ON_BAD_ROW = ("error", "skip")


@dataclass(frozen=True)
class Loaded:
    """What was read.

    Args:
        kind: "record" where at least one item is a :class:`Record` (a file may mix them with conversations),
            "conversation" where all are, "trl" where the items are rows that TRL tokenises.
        items: Records and conversations, or TRL's rows, in the order of the files.
        format: The format's name.
        files: The files read; empty for a data set of the hub.
        problems: The bad rows that were left out, in order.
        name: What was read: the path or name given, the file that is a folder's split, or folder and split.
        values: For each item the values of the fields that were asked for; ``None`` where its row has none.
    """

    kind: Kind
    items: list[Item | dict[str, Any]]
    format: str
    files: tuple[Path, ...] = ()
    problems: list[RowError] = field(default_factory=list)
    name: str = ""
    values: list[tuple[Any, ...]] = field(default_factory=list)


def read_rows(
    path: str | Path,
    *,
    format: str = "auto",  # noqa: A002
    on_bad_row: str = "error",
    needs_documents: bool = True,
    split: str | Sequence[str] = "train",
    fields: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> Loaded:
    """All training examples of a file, a folder of files, or a data set of the hub.

    Args:
        path: A file (.jsonl, .json, .tsv with .ans, packed as .gz or .bz2, .parquet), a folder of such, a data set
            saved with ``save_to_disk``, or a data set name ``org/name`` of the hub.
        format: A name of :data:`selfaug.data.formats.FORMATS`, or "auto" to tell it from the first rows.
        on_bad_row: "error" raises at the first bad row, "skip" leaves bad rows out and lists them.
        needs_documents: Whether a record without documents is a bad row; false where a corpus will fill them.
        split: Name of the split to read of a folder, a saved data set or a data set of the hub; of several names the
            first that is there (:mod:`selfaug.data.folders`). What is read of a folder is said on stderr.
        fields: Names of fields whose values to keep beside each item; ``a.b`` is the field b of a.
        progress: Called with the number of rows read so far, after each row.

    Raises:
        DataError: If the path does not exist, a file cannot be read, the format is unknown, no row is usable, or (as
            :class:`RowError`) a row is bad and ``on_bad_row`` is "error".
        ConfigError: If ``format`` or ``on_bad_row`` is not a known name.
    """
    if on_bad_row not in _ON_BAD_ROW:
        raise ConfigError(
            f"on_bad_row={on_bad_row!r} is not known.{nearest(str(on_bad_row), _ON_BAD_ROW)}", "use error or skip."
        )
    fixed = None if format == "auto" else get_format(format)
    name, folder = str(path), Path(path).expanduser()
    wanted = (split,) if isinstance(split, str) else tuple(split)
    if _is_hub_name(name):
        sources: list[tuple[str, Iterator[tuple[Where, Any]]]] = [(name, _hub_rows(name, wanted))]
        files: tuple[Path, ...] = ()
    elif any((folder / mark).is_file() for mark in _SAVED):
        sources, files = [(name, _saved_rows(folder, wanted))], (folder,)
    else:
        found_files = find_files(folder, wanted)
        files, name = found_files.files, _name_of(name, found_files)
        if found_files.note:
            say(found_files.note)
        sources = [(str(file), iter_rows(file)) for file in files]

    items: list[Item | dict[str, Any]] = []
    problems: list[RowError] = []
    values: list[tuple[Any, ...]] = []
    counted = itertools.count(1)
    formats: dict[str, str] = {}
    for source, rows in sources:
        found, rows = (fixed, rows) if fixed else _tell_format(source, rows)
        formats.setdefault(found.name, source)
        if len(formats) > 1:
            (one, first), (other, second) = formats.items()
            raise DataError(
                f"{first} is in the format {one} and {second} is in the format {other}; a folder is one data set",
                "give the files one by one, or name the format with --format.",
            )
        for item, of_row in _parse(rows, found, needs_documents):
            if not isinstance(item, RowError):
                items.append(item)
                if fields:
                    values.append(tuple(_value(of_row, name) for name in fields))
            elif on_bad_row == "error":
                raise item
            else:
                problems.append(item)
            if progress is not None:
                progress(next(counted))
    if not items:
        first_problem = f"; the first of {len(problems)} bad rows: {problems[0].message}" if problems else ""
        hint = problems[0].hint if problems else "check the format (--format) and the rows."
        raise DataError(f"{path}: no usable row{first_problem}", hint)
    return Loaded(_kind(items), items, next(iter(formats)), files, problems, name, values)


def _name_of(path: str, found: Found) -> str:
    if found.split is None:
        return path
    return str(found.files[0]) if len(found.files) == 1 else f"{path} ({found.split})"


def _parse(
    rows: Iterator[tuple[Where, Any]], found: Format, needs_documents: bool
) -> Iterator[tuple[Item | dict[str, Any] | RowError, tuple[Any, ...]]]:
    """Each item or bad row, with the rows that it was made from: its own, and the one that holds it and others."""
    for where, row in rows:
        if isinstance(row, RowError):
            yield row, ()
            continue
        for place, part in found.expand(row, where):
            if isinstance(part, RowError):
                yield part, ()
                continue
            try:
                yield found.parse(part, place, needs_documents), (part, row)
            except RowError as error:
                yield error, ()


def _value(rows: tuple[Any, ...], name: str) -> Any:
    """The value of a field in the first of the rows that has it; a name with points may lead into nested objects."""
    for row in rows:
        if row.get(name) is not None:
            return row[name]
        for key in name.split("."):
            row = row.get(key) if isinstance(row, Mapping) else None
        if row is not None:
            return row
    return None


def _tell_format(source: str, rows: Iterator[tuple[Where, Any]]) -> tuple[Format, Iterator[tuple[Where, Any]]]:
    looked_at = list(itertools.islice(rows, _LOOKED_AT))
    good = [row for _, row in looked_at if not isinstance(row, RowError)]
    if not good:
        errors = [row for _, row in looked_at]
        if errors:
            raise errors[0]
        raise DataError(f"{source}: the file holds no row", "give a file with at least one row.")
    try:
        return get_format(detect(good)), itertools.chain(looked_at, rows)
    except DataError as error:
        raise DataError(f"{source}: {error.message}", error.hint) from None


def _kind(items: list[Item | dict[str, Any]]) -> Kind:
    if all(isinstance(item, Conversation) for item in items):
        return "conversation"
    return "trl" if isinstance(items[0], dict) else "record"


def _is_hub_name(name: str) -> bool:
    """Whether this can only mean a data set of the hub: ``org/name`` that no file or folder here could be."""
    if not _HUB_NAME.fullmatch(name) or name.lower().endswith((*SUFFIXES, ".gz", ".bz2", ".txt", ".csv")):
        return False
    return not Path(name).exists() and not Path(name).parent.exists()


def hub_split(name: str, wanted: Sequence[str], config: str | None = None) -> str:
    """The name that the first of the wanted splits has in a data set of the hub.

    A part of a split (``train[:10%]``) is handed on as it is.

    Raises:
        DataError: If there is none, or several could be meant.
    """
    import datasets

    if not wanted[0].replace("-", "_").isidentifier():
        return wanted[0]
    try:
        splits = datasets.get_dataset_split_names(name, config)
    except Exception:  # As below; loading the data set says what is wrong.
        return wanted[0]
    return _choose(name, splits, wanted)


def _choose(name: str, splits: Sequence[str], wanted: Sequence[str]) -> str:
    chosen = choose(splits, wanted)
    if chosen is None:
        raise DataError(
            f"{name}: there is no split {' or '.join(wanted)}; there is {', '.join(splits)}",
            f"name the split: --split {splits[0]} for `selfaug prepare`, --dataset_train_split for `selfaug train`.",
        )
    if chosen != wanted[0] or len(splits) > 1:
        say(f"{name}: of the splits {', '.join(splits)}, {chosen} is read.")
    return chosen


def _hub_rows(name: str, wanted: Sequence[str]) -> Iterator[tuple[Where, Any]]:
    import datasets

    split = hub_split(name, wanted)
    try:
        table = datasets.load_dataset(name, split=split)
    except Exception as error:  # The hub's client raises what its HTTP library, its cache and its builders raise.
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{name}: the data set's split {split!r} could not be loaded from the hub ({first})",
            "check the name, the split and the network; a local file is given by its path.",
        ) from None
    yield from _table_rows(table, name)


def _saved_rows(folder: Path, wanted: Sequence[str]) -> Iterator[tuple[Where, Any]]:
    import datasets

    try:
        table = datasets.load_from_disk(str(folder))
    except Exception as error:  # As above.
        raise DataError(f"{folder}: not a whole saved data set ({error})", "save it again.") from None
    if isinstance(table, datasets.DatasetDict):
        table = table[_choose(str(folder), list(table), wanted)]
    yield from _table_rows(table, str(folder))


def _table_rows(table: Any, name: str) -> Iterator[tuple[Where, Mapping[str, Any]]]:
    for number, row in enumerate(table, 1):
        where = Where(name, number, "row")
        yield where, Fields(row, where).row
