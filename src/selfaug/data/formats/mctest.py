r"""MCTest: children's stories with four questions each, read as questions about one document.

Two files side by side: ``NAME.tsv`` with id, properties, story, and four times (question, four options);
``NAME.ans`` with four letters a line. The reader of files joins them into rows of 23 cells (``tsv``)
and 4 letters (``ans``).

Stories hold ``\newline`` and ``\tab`` for what would break a line. Questions start with ``one:`` or ``multiple:``
(how many sentences the answer needs), which is cut off. The options are not shown: the record asks for the text of the
right one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from selfaug.data.fields import Fields, RowError, Where, shown
from selfaug.data.record import Document, Record

CELLS = 3 + 4 * 5
_KINDS = ("one:", "multiple:")


def matches(row: Mapping[str, Any]) -> bool:
    """Tell whether a row was made from a line of a story file."""
    return "tsv" in row


def expand(row: Mapping[str, Any], where: Where) -> Iterator[tuple[Where, Mapping[str, Any] | RowError]]:
    """Yield a row for each question of a story."""
    fields = Fields(row, where)
    try:
        cells, letters = fields.items("tsv", "cells") or [], fields.items("ans", "letters") or []
        if len(cells) != CELLS:
            raise RowError(
                where, "", f"{CELLS} cells (id, properties, story, 4 x question and 4 options)", str(len(cells))
            )
        if len(letters) != 4:
            raise RowError(where, "ans", "4 letters, one a question", shown(letters))
    except RowError as error:
        yield where, error
        return
    for q in range(4):
        question, *options = cells[3 + 5 * q : 8 + 5 * q]
        place = where.within(f"question {q + 1}")
        yield (
            place,
            {
                "id": f"{cells[0]}.{q}",
                "story": cells[2],
                "question": question,
                "options": options,
                "letter": letters[q],
            },
        )


def parse(row: Mapping[str, Any], where: Where, needs_documents: bool) -> Record:
    """Return the record of one question."""
    fields = Fields(row, where)
    letter = fields.text("letter").strip()
    options = fields.items("options", "options") or []
    if letter not in ("A", "B", "C", "D") or len(options) != 4:
        raise fields.error("letter", "A, B, C or D, and four options")
    question = fields.text("question")
    for kind in _KINDS:
        question = question.removeprefix(kind)
    story = fields.text("story").replace("\\newline", "\n").replace("\\tab", "\t")
    answer = Fields({letter: options["ABCD".index(letter)]}, where, "option").text(letter)
    return Record(
        question=Fields({"question": question.strip()}, where).text("question"),
        documents=(Document(Fields({"story": story.strip()}, where).text("story")),),
        answers=(answer.strip(),),
        id=fields.identifier(),
    )
