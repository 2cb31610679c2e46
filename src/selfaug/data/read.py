"""Reads the training examples of a path or data set name."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from selfaug.common.errors import ConfigError, DataError, nearest
from selfaug.common.terminal import say
from selfaug.data.fields import Fields, RowError, Where, present, shown
from selfaug.data.files import SUFFIXES, Found, find_files, iter_rows
from selfaug.data.folders import choose
from selfaug.data.formats import Format, detect, get_format, mapped
from selfaug.data.record import Conversation, Item, Record

__all__ = [
    "LOOKED_AT", "Loaded", "Reader", "Reading", "fingerprint_of", "hub_split", "open_rows", "open_table", "read_rows",
    "read_table", "table_row",
]  # fmt: skip

Kind = Literal["record", "conversation", "trl"]
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
LOOKED_AT = 32
"""Number of first rows by which a format is detected: enough to outvote a few bad ones."""

_SAVED = ("dataset_info.json", "dataset_dict.json")  # files that save_to_disk writes
_SURE = ("trl", "canonical", "map")  # formats whose fields are not guessed
_MAX_EXAMPLES = 3  # number of examples that the user sees
_ON_BAD_ROW = ("error", "skip")


@dataclass(frozen=True)
class Loaded:
    """The examples of a data set.

    Args:
        kind: "record" if at least one item is a :class:`Record` (a file may mix them with conversations),
            "conversation" if all items are conversations, "trl" if they are rows that TRL tokenises.
        items: Records and conversations, or TRL's rows, in the order of the files.
        format: Name of the format.
        files: Files of the data set; empty for a data set of the hub.
        problems: Bad rows that were left out, in order.
        name: Given path or name, or the file of a folder's split, or folder and split.
        values: Values of the wanted fields of each item; ``None`` where its row has none.
    """

    kind: Kind
    items: list[Item | dict[str, Any]]
    format: str
    files: tuple[Path, ...] = ()
    problems: list[RowError] = field(default_factory=list)
    name: str = ""
    values: list[tuple[Any, ...]] = field(default_factory=list)


class Reading:
    """The usable examples of a file, folder or data set, in order. Each iteration reads them again.

    Attributes ``format``, ``kind``, ``count``, ``problems`` and ``notes`` are set at the end of an iteration.

    Args:
        name: Given path or name, or the file of a folder's split, or folder and split.
        files: Files of the data set; empty for a data set of the hub.
        opened: Function that opens the sources again: pairs of a name, for messages, and rows with their places.
        fixed: Format of the rows; ``None`` to detect it by the first rows.
        on_bad_row: ``error`` to stop at a bad row, ``skip`` to leave it out.
        needs_documents: Whether a record without documents is a bad row.
        identity: Everything besides the files that decides the examples.
    """

    def __init__(
        self,
        name: str,
        files: tuple[Path, ...],
        opened: Callable[[], Iterator[tuple[str, Iterator[tuple[Where, Any]]]]],
        fixed: Format | None,
        on_bad_row: str,
        needs_documents: bool,
        identity: Mapping[str, Any],
    ) -> None:
        self.name = name
        self.files = files
        self.identity = identity
        self.format = ""
        self.kind: Kind = "record"
        self.count = 0
        self.problems: list[RowError] = []
        self.notes: tuple[str, ...] = ()
        self._opened = opened
        self._fixed = fixed
        self._on_bad_row = on_bad_row
        self._needs_documents = needs_documents

    def __iter__(self) -> Iterator[Item | dict[str, Any]]:
        for item, _ in self.with_values():
            yield item

    def with_values(
        self, fields: Sequence[str] = (), progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[Item | dict[str, Any], tuple[Any, ...]]]:
        """Yield each example with the values of fields of its row.

        Args:
            fields: Names of fields; ``a.b`` is the field b of a.
            progress: Function called after each row with the number of rows read.

        Raises:
            DataError: As :func:`read_rows`.
        """
        self.count, self.problems = 0, []
        examples: list[Item | dict[str, Any]] = []
        counted = itertools.count(1)
        kinds: set[type] = set()
        first: Reader | None = None
        for source, rows in self._opened():
            reader = Reader(source, rows, self._fixed, self._needs_documents, first)
            first = first or reader
            for item, of_row in reader:
                if isinstance(item, RowError):
                    if self._on_bad_row == "error":
                        raise item
                    self.problems.append(item)
                else:
                    self.count += 1
                    kinds.add(type(item))
                    if len(examples) < _MAX_EXAMPLES:
                        examples.append(item)
                    yield item, tuple(_value(of_row, name) for name in fields)
                if progress is not None:
                    progress(next(counted))
            first.unread = (first.unread | reader.unread) - {name.partition(".")[0] for name in fields}
        if not examples or first is None:
            raise self._none_usable()
        self.format = first.format.name
        self.kind = "trl" if isinstance(examples[0], dict) else "record" if Record in kinds else "conversation"
        notes = first.notes(examples)
        self.notes = tuple(line if line.startswith(" ") else f"{self.name}: {line}" for line in notes)

    def first(self) -> Item | dict[str, Any]:
        """Return the first example, and check the first rows of each source.

        Raises:
            DataError: As :func:`read_rows`, if the first rows already show it.
        """
        self.problems = []
        found: Item | dict[str, Any] | None = None
        like: Reader | None = None
        for source, rows in self._opened():
            reader = Reader(source, rows, self._fixed, self._needs_documents, like)
            like = like or reader
            for number, (item, _) in enumerate(reader, start=1):
                if not isinstance(item, RowError):
                    found = found or item
                elif self._on_bad_row == "error":
                    raise item
                else:
                    self.problems.append(item)
                if found is not None and number >= LOOKED_AT:
                    break
        if found is None:
            raise self._none_usable()
        return found

    def _none_usable(self) -> DataError:
        if not self.problems:
            return DataError(f"{self.name}: no usable row", "check the format (--format) and the rows.")
        first, count = self.problems[0], len(self.problems)
        return DataError(f"{self.name}: no usable row; the first of {count} bad rows: {first.message}", first.hint)


def open_rows(
    path: str | Path,
    *,
    format: str = "auto",  # noqa: A002
    on_bad_row: str = "error",
    needs_documents: bool = True,
    split: str | Sequence[str] = "train",
    mapping: Mapping[str, str] | Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
) -> Reading:
    """Return a reading of a file, a folder of files, or a data set of the hub; see :func:`read_rows`.

    Raises:
        DataError: If the path does not exist.
        ConfigError: If ``format`` or ``on_bad_row`` is unknown, or ``mapping`` is invalid.
    """
    if on_bad_row not in _ON_BAD_ROW:
        raise ConfigError(
            f"on_bad_row={on_bad_row!r} is not known.{nearest(str(on_bad_row), _ON_BAD_ROW)}", "use error or skip."
        )
    fixed = _fixed(format, mapping)
    name, folder = str(path), Path(path).expanduser()
    wanted = (split,) if isinstance(split, str) else tuple(split)
    files: tuple[Path, ...] = ()
    table: Any = None
    if _is_hub_name(name):
        table = _hub_table(name, wanted)
    elif any((folder / mark).is_file() for mark in _SAVED):
        table, files = _saved_table(folder, wanted), (folder,)
    else:
        found_files = find_files(folder, wanted)
        files, name = found_files.files, _name_of(name, found_files)
        if found_files.note:
            say(found_files.note)

    def opened() -> Iterator[tuple[str, Iterator[tuple[Where, Any]]]]:
        sources = (
            [(name, _table_rows(table, name))]
            if table is not None
            else ((str(file), iter_rows(file)) for file in files)
        )
        for source, rows in sources:
            yield source, rows if columns is None else _selected(rows, columns)

    identity = {
        "table": None if table is None else fingerprint_of(table),
        "format": format,
        "mapping": mapping,
        "columns": columns,
        "needs_documents": needs_documents,
        "on_bad_row": on_bad_row,
    }
    return Reading(name, files, opened, fixed, on_bad_row, needs_documents, identity)


def open_table(
    table: Any,
    name: str,
    *,
    format: str = "auto",  # noqa: A002
    mapping: Mapping[str, str] | Sequence[str] | None = None,
    on_bad_row: str = "error",
) -> Reading:
    """Return a reading of a table of ``datasets``; see :func:`read_rows`."""

    def opened() -> Iterator[tuple[str, Iterator[tuple[Where, Any]]]]:
        yield name, _table_rows(table, name)

    identity = {"table": fingerprint_of(table), "format": format, "mapping": mapping, "on_bad_row": on_bad_row}
    return Reading(name, (), opened, _fixed(format, mapping), on_bad_row, True, identity)


def fingerprint_of(table: Any) -> str:
    """Return the fingerprint by which ``datasets`` identifies a table's content; a random number for none."""
    return str(getattr(table, "_fingerprint", None) or random.getrandbits(64))


def read_rows(
    path: str | Path,
    *,
    format: str = "auto",  # noqa: A002
    on_bad_row: str = "error",
    needs_documents: bool = True,
    split: str | Sequence[str] = "train",
    mapping: Mapping[str, str] | Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    fields: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> Loaded:
    """Return all training examples of a file, a folder of files, or a data set of the hub.

    Unread columns are listed on stderr, and also the first examples if the format was detected.

    Args:
        path: File (.jsonl, .json, .csv, .tsv, also with .gz or .bz2; .parquet), folder of such files, data set saved
            with ``save_to_disk``, or name ``org/name`` of a data set of the hub.
        format: Name in :data:`selfaug.data.formats.FORMATS`, or "auto" to detect the format by the first rows.
        on_bad_row: "error" to raise at the first bad row, "skip" to leave bad rows out and list them.
        needs_documents: Whether a record without documents is a bad row; false if a corpus will fill them.
        split: Name of the split of a folder, a saved data set or a data set of the hub, or names, of which the first
            available one is read (:mod:`selfaug.data.folders`). The choice of files is reported on stderr.
        mapping: Path of each field of a record (``--map``); see :func:`selfaug.data.formats.mapped`.
        columns: Columns of the rows to read; ``None`` for all.
        fields: Names of fields whose values are returned beside each item; ``a.b`` is the field b of a.
        progress: Function called after each row with the number of rows read.

    Raises:
        DataError: If the path does not exist, a file cannot be read, the format is unknown, no row is usable, or (as
            :class:`RowError`) a row is bad and ``on_bad_row`` is "error".
        ConfigError: If ``format`` or ``on_bad_row`` is unknown, or ``mapping`` is invalid.
    """
    reading = open_rows(
        path,
        format=format,
        on_bad_row=on_bad_row,
        needs_documents=needs_documents,
        split=split,
        mapping=mapping,
        columns=columns,
    )
    return _loaded(reading, fields, progress)


def _name_of(path: str, found: Found) -> str:
    if found.split is None:
        return path
    return str(found.files[0]) if len(found.files) == 1 else f"{path} ({found.split})"


def read_table(
    table: Any,
    name: str,
    *,
    format: str = "auto",  # noqa: A002
    mapping: Mapping[str, str] | Sequence[str] | None = None,
    on_bad_row: str = "error",
) -> Loaded:
    """Return all training examples of a table of ``datasets``; see :func:`read_rows`."""
    return _loaded(open_table(table, name, format=format, mapping=mapping, on_bad_row=on_bad_row))


def _loaded(reading: Reading, fields: Sequence[str] = (), progress: Callable[[int], None] | None = None) -> Loaded:
    items: list[Item | dict[str, Any]] = []
    values: list[tuple[Any, ...]] = []
    for item, of_row in reading.with_values(fields, progress):
        items.append(item)
        if fields:
            values.append(of_row)
    for line in reading.notes:
        say(line)
    return Loaded(reading.kind, items, reading.format, reading.files, reading.problems, reading.name, values)


def _fixed(format_: str, mapping: Mapping[str, str] | Sequence[str] | None) -> Format | None:
    if mapping and format_ != "auto":
        raise ConfigError(
            f"format={format_!r} and map are both set, and each says where the fields of a record stand",
            "pass one of them.",
        )
    return mapped(mapping) if mapping else None if format_ == "auto" else get_format(format_)


def _selected(rows: Iterator[tuple[Where, Any]], columns: Sequence[str]) -> Iterator[tuple[Where, Any]]:
    for where, row in rows:
        yield where, row if isinstance(row, RowError) else {key: row[key] for key in columns if key in row}


class Reader:
    """Iterator over the examples of one source, with a :class:`RowError` in the place of each bad row.

    Each example comes with the rows that it was made from: its own, and the outer row if that contains several.

    Args:
        source: Name of the file or data set, for messages.
        rows: Rows with their places.
        fixed: Format of the rows; ``None`` to detect it by the first rows.
        needs_documents: Whether a record without documents is a bad row.
        like: Reader of the data set's first file, whose format this source must have; ``None`` for the first file.

    Raises:
        DataError: If the source is empty, or its format is unknown or not that of the first file.
    """

    def __init__(
        self,
        source: str,
        rows: Iterator[tuple[Where, Any]],
        fixed: Format | None,
        needs_documents: bool,
        like: Reader | None = None,
    ) -> None:
        self.format: Format
        self.source = source
        looked_at = list(itertools.islice(rows, LOOKED_AT))
        good = [row for _, row in looked_at if not isinstance(row, RowError)]
        try:
            found = fixed or get_format(detect(_require_good(looked_at, good)))
            # The meaning of the first file's columns holds for all files.
            self.format = like.format if like is not None and like.format.name == found.name else found.bound(good)
        except DataError as error:
            raise (
                error if isinstance(error, RowError) else DataError(f"{source}: {error.message}", error.hint)
            ) from None
        if like is not None and like.format.name != self.format.name:
            raise DataError(
                f"{like.source} is in the format {like.format.name} and {source} is in the format {self.format.name}; "
                "a folder is one data set",
                "give the files one by one, or name the format with --format.",
            )
        self.columns: frozenset[str] = like.columns if like is not None else frozenset()
        self.guessed = fixed is None and found.name not in _SURE
        self.unread: set[str] = set()
        self._rows = itertools.chain(looked_at, rows)
        self._needs_documents = needs_documents

    def __iter__(self) -> Iterator[tuple[Item | dict[str, Any] | RowError, tuple[Any, ...]]]:
        for where, row in self._rows:
            yield from self._with_rows(row, where)

    def items(self, row: Any, where: Where) -> Iterator[Item | dict[str, Any] | RowError]:
        """Yield the examples of one row."""
        for item, _ in self._with_rows(row, where):
            yield item

    def _with_rows(self, row: Any, where: Where) -> Iterator[tuple[Item | dict[str, Any] | RowError, tuple[Any, ...]]]:
        if isinstance(row, RowError):
            yield row, ()
            return
        self.note_columns(row)
        if (refusal := _refusal(row, where)) is not None:
            yield refusal, ()
            return
        for place, part in self.format.expand(row, where):
            if isinstance(part, RowError):
                yield part, ()
                continue
            try:
                item = self.format.parse(part, place, self._needs_documents)
                if isinstance(item, dict):
                    self._check_alike(item, place)
                yield item, (part, row)
            except RowError as error:
                yield error, ()

    def _check_alike(self, row: Mapping[str, Any], where: Where) -> None:
        """Check that a row has the columns of the first one, since TRL treats all rows like the first."""
        columns = frozenset(row) - {"tools", "chat_template_kwargs"}
        chat = {"prompt as messages"} if isinstance(row.get("prompt"), list) else set()
        self.columns = self.columns or columns | chat
        if columns | chat != self.columns:
            expected = f"the columns of the first row ({', '.join(sorted(self.columns))})"
            raise RowError(where, "", expected, ", ".join(sorted(columns | chat)))

    def note_columns(self, row: Mapping[str, Any]) -> None:
        """Note the columns of a row that are not read."""
        if new := {str(key) for key in row if row[key] is not None} - self.unread:
            self.unread |= new - set(map(str, self.format.columns(row)))

    def notes(self, items: Sequence[Item | dict[str, Any]]) -> tuple[str, ...]:
        """Return lines for the user on how the examples were read."""
        lines = [f"unread columns: {', '.join(sorted(self.unread))}"] if self.unread else []
        if self.guessed:
            how = f" ({self.format.paths})" if self.format.paths else ""
            lines.append(f"read as {self.format.name}{how}; --format or --map says otherwise. The first examples:")
            lines += [f"  {_in_one_line(item)}" for item in items[:_MAX_EXAMPLES]]
        return tuple(lines)


def _value(rows: tuple[Any, ...], name: str) -> Any:
    """Return the value of a field in the first row that has it; a name with points may lead into nested objects."""
    for row in rows:
        if row.get(name) is not None:
            return row[name]
        for key in name.split("."):
            row = row.get(key) if isinstance(row, Mapping) else None
        if row is not None:
            return row
    return None


_WEIGHTS = ("weight", "sample_weight", "loss_weight", "example_weight")
_MEDIA = ("images", "image", "videos", "audios")


def _refusal(row: Mapping[str, Any], where: Where) -> RowError | None:
    """Return an error if a column says that the row is not to be trained as a text of full weight; else ``None``."""
    for name in _WEIGHTS:
        if row.get(name) not in (None, "", "1", "1.0", 1):
            return RowError(where, name, "no weight but 1 (every row counts by its tokens)", shown(row[name]))
    if row.get("train") in (False, "false", "False", 0):
        return RowError(where, "train", "a row that is to be trained", shown(row["train"]))
    if {"prompt", "completion"} <= row.keys() and row.get("label") in (False, "false", "False", 0):
        return RowError(where, "label", "a completion that is wanted (label true)", shown(row["label"]))
    for name in _MEDIA:
        if row.get(name):
            return RowError(where, name, "text alone (no pictures, videos or sounds are read)", shown(row[name]))
    return None


def _require_good(looked_at: list[tuple[Where, Any]], good: list[Any]) -> list[Any]:
    if good:
        return good
    raise looked_at[0][1] if looked_at else DataError("the file holds no row", "give a file with at least one row.")


def _in_one_line(item: Item | dict[str, Any]) -> str:
    if isinstance(item, Record):
        first = f": {shown(item.documents[0].text)}" if item.documents else ""
        answer = shown(item.answers[0]) if item.answers else "none (the abstention text)"
        return f"question {shown(item.question)}; documents {len(item.documents)}{first}; answer {answer}"
    if isinstance(item, Conversation):
        return "; ".join(f"{m['role']} {shown(m['content'])}" for m in item.messages[:3])
    return shown(item)


def _is_hub_name(name: str) -> bool:
    """Tell whether a name can only mean a data set of the hub: ``org/name``, and no file or folder here."""
    if not _HUB_NAME.fullmatch(name) or name.lower().endswith((*SUFFIXES, ".gz", ".bz2", ".txt")):
        return False
    return not Path(name).exists() and not Path(name).parent.exists()


def hub_split(name: str, wanted: Sequence[str], config: str | None = None) -> str:
    """Return the name of the first wanted split that a data set of the hub has.

    A part of a split (``train[:10%]``) is returned as it is.

    Raises:
        DataError: If there is none, or several names match.
    """
    import datasets

    if not wanted[0].replace("-", "_").isidentifier():
        return wanted[0]
    try:
        splits = datasets.get_dataset_split_names(name, config)
    except Exception:  # of any type, as below; loading the data set will say what is wrong
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


def _hub_table(name: str, wanted: Sequence[str]) -> Any:
    import datasets

    split = hub_split(name, wanted)
    try:
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # the hub's client passes on errors of its HTTP library, cache and builders
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{name}: the data set's split {split!r} could not be loaded from the hub ({first})",
            "check the name, the split and the network; a local file is given by its path.",
        ) from None


def _saved_table(folder: Path, wanted: Sequence[str]) -> Any:
    import datasets

    try:
        table = datasets.load_from_disk(str(folder))
    except Exception as error:  # of any type, as above
        raise DataError(f"{folder}: not a whole saved data set ({error})", "save it again.") from None
    if isinstance(table, datasets.DatasetDict):
        table = table[_choose(str(folder), list(table), wanted)]
    return table


def _table_rows(table: Any, name: str) -> Iterator[tuple[Where, Mapping[str, Any]]]:
    for number, row in enumerate(table, 1):
        where = Where(name, number, "row")
        yield where, table_row(Fields(row, where).row, table.features)


def table_row(row: Mapping[str, Any], features: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a row of a table of ``datasets`` without the nulls that the table added.

    Columns of JSON texts stay as they are, since nulls in them are the row's own.
    """
    kept = {key for key, feature in (features or {}).items() if "Json(" in repr(feature)}
    return {key: value if key in kept else present(value) for key, value in row.items() if value is not None}
