"""Shortens rows to max_length; answers are never cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from selfaug.data.record import Document, Record
from selfaug.data.tokens import RecordTokens, record_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selfaug.data.prompts import Renderer

__all__ = ["SHORTEST_PIECE", "FitResult", "fit_documents", "fit_ids", "fit_record"]

# A few words of a document tell the model nothing, but they train it to answer from nothing.
SHORTEST_PIECE = 16
_SLACK = 8

Ids = list[int]


@dataclass(frozen=True)
class FitResult:
    """A row that fits.

    Args:
        input_ids: Prompt and response.
        labels: -100 on the prompt, the ids on the response.
        kept_documents: What stands in the prompt, in the record's order; one of them may be shortened.
        dropped_documents: The rest, in the record's order.
        shortened: Whether the least relevant of the kept ones lost its end.
        whole_tokens: The row's tokens with every document whole.
        answer_lost: Whether an accepted answer stood in what was dropped or cut off, and in nothing that was kept.
    """

    input_ids: Ids
    labels: Ids
    kept_documents: tuple[Document, ...]
    dropped_documents: tuple[Document, ...]
    shortened: bool
    whole_tokens: int
    answer_lost: bool = False


def fit_record(
    record: Record,
    renderer: Renderer,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    notes: Counter[str] | None = None,
    whole: RecordTokens | None = None,
) -> FitResult | None:
    """The record's tokens with as many of its documents as fit in ``max_length``; ``None`` where it cannot fit.

    Documents are dropped from the least relevant end: the lowest score where all have one, else the last. Of the
    first that does not fit whole, the beginning stays, cut between tokens, if at least 16 tokens of it fit. A record
    with documents of which nothing fits does not fit. A larger ``max_length`` never keeps less. ``max_length=None``
    keeps everything. ``notes`` are those of :func:`selfaug.data.tokens.record_tokens`, and ``whole`` is what it gives
    for the whole record, where that is known.

    Raises:
        ConfigError, DataError: As :func:`selfaug.data.tokens.record_tokens`.
    """

    def tokens(documents: Sequence[Document]) -> tuple[Ids, Ids]:
        prompt, response = record_tokens(renderer, tokenizer, record, documents, notes)
        return prompt + response, [-100] * len(prompt) + response

    known = None
    if whole is not None:
        known = whole.prompt + whole.response, [-100] * len(whole.prompt) + whole.response
        if notes is not None:
            notes.clear()
            notes.update(whole.notes)
    return fit_documents(record.documents, tokens, tokenizer, max_length, known)


def fit_documents(
    documents: Sequence[Document],
    tokens: Callable[[Sequence[Document]], tuple[Ids, Ids]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    whole_row: tuple[Ids, Ids] | None = None,
) -> FitResult | None:
    """:func:`fit_record` for anything whose ``(input_ids, labels)`` are a function of its documents.

    ``tokens`` is called some 2·log2(documents) + 10 times; for all documents only where ``whole_row`` is not given.
    """
    documents = tuple(documents)
    ids, labels = tokens(documents) if whole_row is None else whole_row
    whole = len(ids)
    if max_length is None or whole <= max_length:
        return FitResult(ids, labels, documents, (), False, whole)
    ranks = _by_relevance(documents)

    def chosen(count: int, piece: str = "") -> dict[int, Document]:
        keep = {i: documents[i] for i in ranks[:count]}
        if piece:
            keep[ranks[count]] = replace(documents[ranks[count]], text=piece)
        return dict(sorted(keep.items()))

    def length(keep: dict[int, Document]) -> int:
        return len(tokens(tuple(keep.values()))[0])

    # All together are known not to fit, so at least one is shortened or dropped.
    count = _largest(lambda n: length(chosen(n)) <= max_length, 1, len(documents) - 1)
    pieces = _beginnings(documents[ranks[count]].text, tokenizer) if documents else []
    size = _largest_piece(pieces, lambda n: length(chosen(count, pieces[n - 1][0])), max_length)
    if not count and not size:
        return None
    keep = chosen(count, pieces[size - 1][0] if size else "")
    ids, labels = tokens(tuple(keep.values()))
    dropped = tuple(document for i, document in enumerate(documents) if i not in keep)
    return FitResult(ids, labels, tuple(keep.values()), dropped, size > 0, whole)


def fit_ids(
    input_ids: Sequence[int],
    labels: Sequence[int],
    max_length: int | None,
    cut_prompt_left: bool = False,
    keep_first: int = 0,
) -> tuple[Ids, Ids] | None:
    """Ids and labels of at most ``max_length`` tokens, or ``None`` where the row does not fit and may not be cut.

    Args:
        input_ids: Of a row without document structure.
        labels: -100 or the id, at each place.
        max_length: In tokens; ``None`` for no limit.
        cut_prompt_left: Whether tokens before the first response may be left out, from the left. One of them always
            stays, as the first response token needs one to be predicted from.
        keep_first: How many tokens at the start are never left out (1 for a BOS).
    """
    ids, marks = list(input_ids), list(labels)
    if max_length is None or len(ids) <= max_length:
        return ids, marks
    cut = len(ids) - max_length
    first = next((i for i, label in enumerate(marks) if label != -100), 0)
    if not cut_prompt_left or keep_first + cut > first - (0 if keep_first else 1):
        return None
    after = keep_first + cut
    return ids[:keep_first] + ids[after:], marks[:keep_first] + marks[after:]


def _by_relevance(documents: Sequence[Document]) -> list[int]:
    """Places of the documents, most relevant first; the given order among equals."""
    places = list(range(len(documents)))
    if all(document.score is not None for document in documents):
        places.sort(key=lambda i: -(documents[i].score or 0.0))
    return places


def _beginnings(text: str, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, int]]:
    """The beginnings of ``text`` that end between tokens, from 16 tokens to all but the last one, shortest first.

    Each with its number of tokens, or 0 where the tokenizer does not know where its tokens stand.
    """
    text = text.strip()
    if tokenizer.is_fast:
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        # A character of several tokens ends only once.
        ends = {end: count for count, (_, end) in enumerate(offsets, start=1)}
        places = [(end, count) for end, count in ends.items() if SHORTEST_PIECE <= count < len(offsets)]
    else:
        places = [(i, 0) for i in range(1, len(text)) if text[i].isspace()][SHORTEST_PIECE - 1 :]
    return [(text[:end].rstrip(), count) for end, count in places if end < len(text) and text[:end].strip()]


def _largest_piece(pieces: Sequence[tuple[str, int]], length: Callable[[int], int], limit: int) -> int:
    """The number n of the longest piece whose row, of ``length(n)`` tokens, fits ``limit``; 0 where none does.

    A row grows with the piece's own tokens, but for a few that merge otherwise at its end: only pieces for which
    these few decide are tried. What is taken for granted grows with the limit, so the result does too.
    """
    first = length(1) if pieces else limit + 1
    if first > limit:
        return 0

    def fits(n: int) -> bool:
        expected = first + pieces[n - 1][1] - pieces[0][1]
        if pieces[n - 1][1] and abs(expected - limit) > _SLACK:
            return expected < limit
        return length(n) <= limit

    best = _largest(fits, 1, len(pieces))
    # A tokenizer that merges across words may grow otherwise: then nothing is taken for granted.
    return best if length(best) <= limit else _largest(lambda n: length(n) <= limit, 1, len(pieces))


def _largest(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The largest n in [low, high] that holds, or ``low - 1``; ``holds`` is true up to some n and false after.

    Steps double until one fails, then halve: little is tried beyond what fits. What is tried does not depend on the
    limit behind ``holds``, so a larger limit cannot give a smaller n even where ``holds`` is not perfectly monotone.
    """
    best, step = low - 1, 1
    while best < high:
        n = min(best + step, high)
        if not holds(n):
            high = n - 1
            break
        best, step = n, step * 2
    while best < high:
        n = (best + high + 1) // 2
        if holds(n):
            best = n
        else:
            high = n - 1
    return best
