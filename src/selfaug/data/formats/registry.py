"""The registry of formats, and the detection of the format of given rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from selfaug.common.errors import ConfigError, DataError, nearest
from selfaug.data.fields import RowError, Where
from selfaug.data.formats import canonical, crag, mctest, trl
from selfaug.data.formats.guess import by_name, suggested
from selfaug.data.formats.paths import Path, holds
from selfaug.data.formats.shapes import FIELDS, SHAPES, Shape
from selfaug.data.record import DOCUMENT_PARTS, Item, parse_document

__all__ = ["FORMATS", "Format", "detect", "get_format", "mapped"]

Row = Mapping[str, Any]
_LOOKED_AT = 256  # number of questions by which spellings are detected; one article may have hundreds
_OTHERS = ("messages", "tools", "prompt", "completion", "text")


def _itself(row: Row, where: Where) -> Iterator[tuple[Where, Row | RowError]]:
    yield where, row


@dataclass(frozen=True)
class Format:
    """A data set format: the detection and parsing of its rows.

    Args:
        name: Name for ``--format``.
        about: Sentence for the documentation.
        matches: Function that tells whether a row looks like this format.
        parse: Function from a row, its place and whether documents are needed to a record, a conversation or (for
            TRL's formats) a row. Raises :class:`RowError`.
        columns: Function from a row to the columns that are read.
        expand: Function from a row that contains several records to rows of one record each; parts that cannot be
            separated come as errors, so that the others are kept.
        bind: Function from the first, expanded rows of a file to the format for that file; ``None`` where all files
            have the same one.
        paths: Paths of the fields of a record for the user; empty for formats without paths.
    """

    name: str
    about: str
    matches: Callable[[Row], bool]
    parse: Callable[[Row, Where, bool], Item | dict[str, Any]]
    columns: Callable[[Row], Iterable[str]]
    expand: Callable[[Row, Where], Iterator[tuple[Where, Row | RowError]]] = _itself
    bind: Callable[[Sequence[Row]], Format] | None = None
    paths: str = ""

    def bound(self, rows: Sequence[Row]) -> Format:
        """Return the format for a file with these first rows."""
        if self.bind is None:
            return self
        parts = (part for row in rows for _, part in self.expand(row, Where("", 0)) if not isinstance(part, RowError))
        return self.bind(list(islice(parts, _LOOKED_AT)))


def _of_shape(shape: Shape) -> Format:
    def bind(rows: Sequence[Row]) -> Format:
        bound = shape.bind(rows)
        # The user does not need to see paths that no row has.
        used = {name: path for name, path in bound.paths.items() if any(holds(row, path.lstrip("!")) for row in rows)}
        return Format(
            shape.name, shape.about, shape.matches, bound.parse, shape.columns, shape.expand, None, _in_words(used)
        )

    return Format(shape.name, shape.about, shape.matches, shape.parse, shape.columns, shape.expand, bind)


def _in_words(paths: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={path}" for name, path in paths.items())


# ---- rows of no known shape: their columns' names, or `--map` ------------------------------------------------------


def _looks_named(row: Row) -> bool:
    named = by_name([row])
    if {"question", "answer"} - named.keys():
        return False
    # Without documents only columns named "question" or "query" are questions: other names mean prompts.
    return "documents" in named or named["question"].casefold() in ("question", "query")


def _named(rows: Sequence[Row]) -> Format:
    return _of_shape(Shape("named", "", (), by_name(rows), keeps_answer=True)).bound(rows)


def _parse_named(row: Row, where: Where, needs_documents: bool) -> Item | dict[str, Any]:
    return _named([row]).parse(row, where, needs_documents)


def mapped(given: Mapping[str, str] | Sequence[str]) -> Format:
    """Return the format that ``--map`` describes: a path for each field; other fields have their own names.

    Args:
        given: Paths by field of a record, or by ``messages`` and ``tools``, or by TRL's ``prompt``, ``completion``,
            ``text``; also as texts ``FIELD=PATH``.

    Raises:
        ConfigError: If a field is unknown, or a path is invalid.
    """
    paths = _paths(given)
    parsed = {name: Path.parse(text) for name, text in paths.items()}
    for name in paths:
        if name not in (*FIELDS, *_OTHERS):
            raise ConfigError(
                f"map: {name!r} is not a field that can be filled.{nearest(name, (*FIELDS, *_OTHERS))}",
                f"the fields are {', '.join((*FIELDS, *_OTHERS))}; write FIELD=COLUMN.",
            )
    others = [name for name in paths if name in _OTHERS]
    own = {name: name for name in ("question", "documents", "answer", "id", "system", "answerable")}
    shape = Shape("map", "", (), {**own, **paths}, keeps_answer=True)

    def one(row: Row, where: Where) -> dict[str, Any]:
        return {**row, **{name: path.one(row, where).value for name, path in parsed.items()}}

    def parse(row: Row, where: Where, needs_documents: bool) -> Item | dict[str, Any]:
        if not others:
            return shape.parse(row, where, needs_documents)
        row = one(row, where)
        if "messages" in paths:
            turned = canonical.shared(row)
            return (canonical.parse_sharegpt if turned else canonical.parse)(row, where, needs_documents)
        return trl.parse({name: row[name] for name in paths}, where, needs_documents)

    def columns(row: Row) -> set[str]:
        read = set().union(*(path.columns(row) for path in parsed.values()))
        if not others:
            return read | (own.keys() - paths.keys())
        return read | ({"id", "system", "tools", "documents"} if "messages" in paths else set())

    def bind(rows: Sequence[Row]) -> Format:
        for name, path in parsed.items():
            if not any(holds(row, path.text.removeprefix("!")) for row in rows):
                known = sorted({str(key) for row in rows for key in row})
                raise DataError(
                    f"map says {name}={path.text}, and none of the first {len(rows)} rows has anything there; their "
                    f"columns are {_listed(known)}.{nearest(path.text, known)}",
                    "correct the path: a column, .field inside an object, [] for each entry of a list.",
                )
        return Format("map", "", lambda row: True, parse, columns, paths=_in_words(paths))

    return Format("map", "", lambda row: True, parse, columns, bind=bind)


def _paths(given: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    pairs = list(given.items()) if isinstance(given, Mapping) else [tuple(str(word).split("=", 1)) for word in given]
    paths: dict[str, str] = {}
    for pair in pairs:
        if len(pair) != 2 or not isinstance(pair[1], str) or not pair[1].strip():
            raise ConfigError(
                f"map: {'='.join(map(str, pair))!r} is not of the form FIELD=PATH",
                "write for example --map question=query documents=contexts answer=response.",
            )
        if pair[0] in paths:
            raise ConfigError(f"map: {pair[0]!r} is given twice", "join two paths with a plus: answer=short+aliases.")
        paths[str(pair[0]).strip()] = pair[1].strip()
    return paths


# ---- the table -------------------------------------------------------------------------------------------------------

# Formats in the order of detection: specific ones first, since many formats have a question and an answer.
FORMATS: dict[str, Format] = {
    format_.name: format_
    for format_ in (
        Format(
            "mctest",
            "MCTest: children's stories with four questions each, read as questions about one document.",
            mctest.matches, mctest.parse, lambda row: row, mctest.expand,
        ),
        Format(
            "crag",
            "CRAG (Comprehensive RAG benchmark), tasks 1 to 3: web pages as retrieved, in HTML.",
            crag.matches, crag.parse, lambda row: crag.COLUMNS,
        ),
        *map(_of_shape, SHAPES),
        Format(
            "sharegpt",
            "ShareGPT: turns with `from` (`human`, `gpt`, `system`, `function_call`, `observation`) and `value`.",
            canonical.shared, canonical.parse_sharegpt, lambda row: canonical.SHAREGPT,
        ),
        Format(
            "trl",
            "TRL's own rows, checked and passed on as they are: TRL tokenises them (or they are tokens already).",
            trl.matches, trl.parse, lambda row: trl.KEYS,
        ),
        Format(
            "named",
            "Question, documents and answer under other usual names: `query`, `context`, `response` and many more.",
            lambda row: "messages" not in row and _looks_named(row) and not _is_canonical(row),
            _parse_named, lambda row: {path.lstrip("!") for path in by_name([row]).values()}, bind=_named,
        ),
        Format(
            "canonical",
            "The project's own rows: `question`, `documents`, `answer`; or `messages`.",
            canonical.matches, canonical.parse, canonical.columns,
        ),
    )
}  # fmt: skip


def _is_canonical(row: Row) -> bool:
    named = by_name([row])
    return all(named.get(name, name) == name for name in ("question", "documents", "answer")) and not isinstance(
        row.get("documents"), Mapping
    )


def get_format(name: str) -> Format:
    """Return the format of a name.

    Raises:
        ConfigError: If the name is unknown.
    """
    if name not in FORMATS:
        raise ConfigError(
            f"format={name!r} is not a known data format.{nearest(name, (*FORMATS, 'auto'))}",
            f"use auto, or one of {', '.join(FORMATS)}.",
        )
    return FORMATS[name]


def detect(rows: Iterable[Row]) -> str:
    """Return the name of the format that most rows look like; in a tie the first one.

    Raises:
        DataError: If no row looks like a known format.
    """
    seen = list(rows)
    votes = Counter(name for row in seen if (name := _vote(row)) is not None)
    if not votes:
        found = sorted({str(key) for row in seen for key in row})
        near = next((text for key in found if (text := nearest(key, ("question", "messages", "completion")))), "")
        if seen and all(_is_passage(row) for row in seen):
            raise DataError(
                f"the rows are passages of a corpus: their fields are {_listed(found)}, and no question is among them",
                "give the questions as data, and these as their --corpus.",
            )
        fits = suggested(seen)
        raise DataError(
            f"the rows are in no known format: their fields are {_listed(found)}.{near}",
            (f"`{fits}` would probably read them; " if fits else "say where each field stands with --map; ")
            + "or give question, documents and answer (or messages) in each row, or name the format with --format"
            f" ({', '.join(FORMATS)}).",
        )
    return votes.most_common(1)[0][0]


def _listed(names: Sequence[str]) -> str:
    """Return names as a message lists them, at most 30."""
    shown_ = [repr(name[:60]) for name in names[:30]]
    return ", ".join(shown_ + ["..."] * (len(names) > len(shown_))) or "none"


def _is_passage(row: Row) -> bool:
    try:
        return bool(row.keys() <= DOCUMENT_PARTS and parse_document(row, Where("", 0), "").text)
    except RowError:
        return False


def _vote(row: Row) -> str | None:
    return next((name for name, format_ in FORMATS.items() if format_.matches(row)), None)
