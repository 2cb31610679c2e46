"""Which format are these rows in?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from selfaug.data.fields import RowError, Where, shown
from selfaug.data.formats import canonical, crag, ctxs, followrag, hotpotqa, mctest, raft, rag_instruct, squad, trl
from selfaug.data.record import Item
from selfaug.errors import ConfigError, DataError, nearest

__all__ = ["FORMATS", "Format", "detect", "get_format"]

Row = Mapping[str, Any]


def _itself(row: Row, where: Where) -> Iterator[tuple[Where, Row | RowError]]:
    yield where, row


@dataclass(frozen=True)
class Format:
    """A data set format: how its rows are known and read.

    Args:
        name: What ``--format`` calls it.
        matches: Whether a row looks like this format.
        parse: Row, place and whether documents are needed, to a record, a conversation or (TRL's formats) a row.
            Raises :class:`RowError`.
        expand: A row that holds several records, to rows of one record each; parts that cannot be taken apart come
            as errors, so that the others are kept.
    """

    name: str
    matches: Callable[[Row], bool]
    parse: Callable[[Row, Where, bool], Item | dict[str, Any]]
    expand: Callable[[Row, Where], Iterator[tuple[Where, Row | RowError]]] = _itself


# In the order in which a row is asked: the particular ones first, since many formats hold a question and an answer.
FORMATS: dict[str, Format] = {
    format_.name: format_
    for format_ in (
        Format("mctest", mctest.matches, mctest.parse, mctest.expand),
        Format("crag", crag.matches, crag.parse),
        Format("raft", raft.matches, raft.parse),
        Format("followrag", followrag.matches, followrag.parse),
        Format("squad", squad.matches, squad.parse, squad.expand),
        Format("ctxs", ctxs.matches, ctxs.parse),
        Format("hotpotqa", hotpotqa.matches, hotpotqa.parse),
        Format("rag-instruct", rag_instruct.matches, rag_instruct.parse),
        Format("trl", trl.matches, trl.parse),
        Format("canonical", canonical.matches, canonical.parse),
    )
}


def get_format(name: str) -> Format:
    """The format of this name.

    Raises:
        ConfigError: If there is none; the message names the near one.
    """
    if name not in FORMATS:
        raise ConfigError(
            f"format={name!r} is not a known data format.{nearest(name, (*FORMATS, 'auto'))}",
            f"use auto, or one of {', '.join(FORMATS)}.",
        )
    return FORMATS[name]


def detect(rows: Iterable[Row]) -> str:
    """The name of the format that most of these rows look like; the first such in a tie.

    Raises:
        DataError: If none looks like a known format; the message names the fields found.
    """
    seen = list(rows)
    votes = Counter(name for row in seen if (name := _vote(row)) is not None)
    if not votes:
        found = sorted({str(key) for row in seen for key in row})
        near = next((text for key in found if (text := nearest(key, ("question", "messages", "completion")))), "")
        raise DataError(
            f"the rows are in no known format: their fields are {shown(found) if found else 'none'}.{near}",
            "give question, documents and answer (or messages) in each row, or name the format with --format"
            f" ({', '.join(FORMATS)}).",
        )
    return votes.most_common(1)[0][0]


def _vote(row: Row) -> str | None:
    return next((name for name, format_ in FORMATS.items() if format_.matches(row)), None)
