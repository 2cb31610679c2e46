"""Shortens prompts so that rows fit max_length; answers are never cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from selfaug.data.record import Document, Record
from selfaug.data.tokens import RecordTokens, record_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selfaug.data.prompts import Renderer

__all__ = ["SHORTEST_PIECE", "FitResult", "Truncate", "fit_documents", "fit_ids", "fit_record"]

SHORTEST_PIECE = 16
"""Smallest number of tokens of a shortened document: a few words would only train the model to answer from nothing."""

# Bound on the error, in tokens, of a row's expected length: tokens may merge differently where a document is cut.
_SLACK = 8

Ids = list[int]

Truncate = Literal["by_gold", "by_score"]
"""What decides which documents are dropped first; see :func:`fit_documents`."""


@dataclass(frozen=True)
class FitResult:
    """A row that fits.

    Args:
        input_ids: Token ids of prompt and response.
        labels: -100 for tokens of the prompt, the ids for those of the response.
        kept_documents: Documents of the prompt, in the record's order; one of them may be shortened.
        dropped_documents: Other documents, in the record's order.
        shortened: Whether the least relevant of the kept documents lost its end.
        whole_tokens: Number of tokens of the row with all documents.
        answer_lost: Whether an accepted answer was in what was dropped or cut off, but in nothing that was kept.
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
    """Return the record's row with as many of its documents as fit; ``None`` if not even a part of one fits.

    The least relevant documents are dropped first (:func:`fit_documents`). The first document that does not fit is cut
    between tokens, if at least 16 tokens of it fit. A larger ``max_length`` never keeps less.

    Args:
        record: Record.
        renderer: Renderer of the prompt.
        tokenizer: Tokenizer that ``renderer`` was made for.
        max_length: Largest number of tokens of the row; ``None`` for no limit.
        notes: Counter that is replaced by the counts of :func:`selfaug.data.tokens.record_tokens`.
        whole: Tokens of the whole record, where they are known.

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
    truncate: Truncate = "by_gold",
) -> FitResult | None:
    """Do the work of :func:`fit_record` for anything whose ``(input_ids, labels)`` are a function of its documents.

    The documents of the lowest scores are dropped first where all have one, else the last ones. With
    ``truncate="by_gold"``, as in training, those that the data call wrong go before all others, and those that hold
    the answer last. With ``"by_score"`` only what a retriever knows counts.

    Args:
        documents: Documents of the row.
        tokens: Function from documents to ids and labels, called some 2·log2(documents) + 10 times.
        tokenizer: Tokenizer.
        max_length: Largest number of tokens of the row; ``None`` for no limit.
        whole_row: Ids and labels with all documents, where they are known.
        truncate: ``by_gold`` or ``by_score``.
    """
    documents = tuple(documents)
    ids, labels = tokens(documents) if whole_row is None else whole_row
    whole = len(ids)
    if max_length is None or whole <= max_length:
        return FitResult(ids, labels, documents, (), False, whole)
    ranks = _by_relevance(documents, truncate)

    def chosen(count: int, piece: str = "") -> dict[int, Document]:
        keep = {i: documents[i] for i in ranks[:count]}
        if piece:
            keep[ranks[count]] = replace(documents[ranks[count]], text=piece)
        return dict(sorted(keep.items()))

    def length(keep: dict[int, Document]) -> int:
        return len(tokens(tuple(keep.values()))[0])

    # At least one document is shortened or dropped, since the whole row does not fit.
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
    """Return ids and labels of at most ``max_length`` tokens; ``None`` if the row does not fit and may not be cut.

    Args:
        input_ids: Token ids of a row without documents.
        labels: Labels of the tokens: -100 or the id.
        max_length: Largest number of tokens; ``None`` for no limit.
        cut_prompt_left: Whether tokens before the first response may be removed, from the left. One of them always
            stays, to predict the first response token.
        keep_first: Number of tokens at the start that are never removed (1 for a BOS).
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


def _by_relevance(documents: Sequence[Document], truncate: Truncate) -> list[int]:
    """Return the indices of the documents, most relevant first; equal ones keep their order."""
    places = list(range(len(documents)))
    if all(document.score is not None for document in documents):
        places.sort(key=lambda i: -(documents[i].score or 0.0))
    if truncate == "by_gold":
        places.sort(key=lambda i: (True, None, False).index(documents[i].gold))
    return places


def _beginnings(text: str, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, int]]:
    """Return the beginnings of ``text`` that end between tokens, shortest first: from 16 tokens to all but one.

    Each comes with its number of tokens, or with 0 if the tokenizer does not give the places of its tokens.
    """
    text = text.strip()
    if tokenizer.is_fast:
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        # Several tokens of one character have the same end.
        ends = {end: count for count, (_, end) in enumerate(offsets, start=1)}
        places = [(end, count) for end, count in ends.items() if SHORTEST_PIECE <= count < len(offsets)]
    else:
        places = [(i, 0) for i in range(1, len(text)) if text[i].isspace()][SHORTEST_PIECE - 1 :]
    return [(text[:end].rstrip(), count) for end, count in places if end < len(text) and text[:end].strip()]


def _largest_piece(pieces: Sequence[tuple[str, int]], length: Callable[[int], int], limit: int) -> int:
    """Return the number n of the longest piece whose row, of ``length(n)`` tokens, fits ``limit``; 0 for none.

    A row grows with the piece's tokens, except for a few that merge differently at its end, so only pieces within a
    few tokens of the limit are tokenised. The result never falls as the limit grows.
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
    # With a tokenizer that merges across words, the expected length may be wrong: then every piece is tokenised.
    return best if length(best) <= limit else _largest(lambda n: length(n) <= limit, 1, len(pieces))


def _largest(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Return the largest n in [low, high] with ``holds(n)``, or ``low - 1``; ``holds`` is true up to some n.

    Steps double until one fails, then halve, so little is tried beyond what fits. The order of tries does not depend
    on the limit behind ``holds``: a larger limit cannot give a smaller n even where ``holds`` is not quite monotone.
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
