"""Retrieval of passages for questions, and of distractors that rank high but hold no answer."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from selfaug.common.errors import ConfigError
from selfaug.common.processes import chunked, in_order
from selfaug.data.record import Document, Record
from selfaug.data.words import contains, normalise

if TYPE_CHECKING:
    from selfaug.data.corpus import Ranked

__all__ = ["answers_found", "retrieve", "search_all"]

_QUESTIONS = 50  # number of questions that go to a process at once


def search_all(corpus: Ranked, asked: Sequence[tuple[str, int]], processes: int | None = None) -> list[list[Document]]:
    """Return :meth:`Ranked.search` for each question and number of passages, in several processes."""
    parts = in_order(_search, corpus, chunked(asked, _QUESTIONS), processes or 1, _killed(processes))
    return [documents for part in parts for documents in part]


def _search(corpus: Ranked, asked: Sequence[tuple[str, int]]) -> list[list[Document]]:
    return [corpus.search(question, k) for question, k in asked]


def retrieve(
    records: Iterable[Record],
    corpus: Ranked,
    k: int,
    *,
    distractors: int = 0,
    seed: int = 0,
    shuffle: bool = True,
    exclude: Collection[str] = (),
    processes: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Record]:
    """Return the records with documents from a corpus.

    A record without documents gets the ``k`` best passages, whatever they say; one with documents keeps them. Each
    record then gets ``distractors`` more passages: the best ones that it does not have yet and that contain none of its
    accepted answers. A record for which nothing is found stays without documents.

    Every document then has its score in the corpus, earlier ones too, whatever their score was. The added
    passages without an answer are marked ``gold=False``, so a row that is too long for training loses them first.

    Args:
        records: Records.
        corpus: Passages to search.
        k: Number of passages for a record without documents; at least 0.
        distractors: Number of misleading passages for each record; at least 0.
        seed: Seed of the order of the documents.
        shuffle: Whether the documents of records with distractors are shuffled, by seed and question: if the right
            document always came first, the model would learn to read only the first.
        exclude: Normalised texts (:func:`selfaug.data.words.normalise`) that no record may get.
        processes: Number of processes that search; ``None`` for this one alone.
        progress: Function called with the number of records done.

    Raises:
        ConfigError: If ``k`` or ``distractors`` is negative, or both are 0.
    """
    for name, value in (("top_k", k), ("distractors", distractors)):
        if value < 0:
            raise ConfigError(
                f"{name}={value} is negative: a number of passages is needed", f"set {name} to 0 or more."
            )
    if k == 0 and distractors == 0:
        raise ConfigError("top_k=0 and distractors=0 retrieve nothing", "set one of them above 0.")
    filling = _Filling(corpus, k, distractors, seed if shuffle else None, exclude)
    size = _QUESTIONS if (processes or 1) > 1 else 1
    filled: list[Record] = []
    for part in in_order(_fill_all, filling, chunked(records, size), processes or 1, _killed(processes)):
        filled += part
        if progress is not None:
            progress(len(filled))
    return filled


def _killed(processes: int | None) -> ConfigError:
    return ConfigError(
        f"one of the {processes} processes that search the corpus was killed, probably for want of memory",
        "lower --dataset_num_proc, or leave it out.",
    )


def answers_found(record: Record) -> bool:
    """Tell whether a document of the record contains one of its accepted answers."""
    return any(contains(document.text, answer) for document in record.documents for answer in record.answers)


@dataclass(frozen=True)
class _Filling:
    """The arguments of :func:`retrieve` that every record needs; ``seed`` is ``None`` for no shuffling."""

    corpus: Ranked
    k: int
    distractors: int
    seed: int | None
    exclude: Collection[str]


def _fill_all(filling: _Filling, records: Sequence[Record]) -> list[Record]:
    return [_fill(record, **vars(filling)) for record in records]


def _fill(
    record: Record, corpus: Ranked, k: int, distractors: int, seed: int | None, exclude: Collection[str]
) -> Record:
    taken = {normalise(document.text) for document in record.documents}
    number = 0 if record.documents else k
    best: list[Document] = []
    wrong: list[Document] = []
    for document in corpus.ranked(record.question, 2 * (number + distractors)):
        if len(best) == number and len(wrong) == distractors:
            break
        text = normalise(document.text)
        if text in taken or text in exclude:  # the same text under another name counts as the same passage
            continue
        if len(best) < number:
            best.append(document)
        elif not any(contains(document.text, answer) for answer in record.answers):
            wrong.append(document)
        else:
            continue
        taken.add(text)
    given = list(record.documents)
    if best or wrong:
        given = [replace(document, score=corpus.score(record.question, document)) for document in given]
    documents = [*given, *best, *(replace(document, gold=False) for document in wrong)]
    if wrong and seed is not None:
        random.Random(f"{seed} {record.question}").shuffle(documents)
    return replace(record, documents=tuple(documents))
