"""BM25 retrieval of passages for questions, and of distractors that share words with them but hold no answer."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from selfaug.common.errors import ConfigError, DataError
from selfaug.data.corpus_files import read_passages
from selfaug.data.record import Document, Record
from selfaug.data.words import contains, normalise, terms

__all__ = ["Corpus", "answers_found", "retrieve"]


@dataclass(frozen=True)
class Corpus:
    """Passages and their BM25 index.

    Args:
        passages: Passages in the order of their files, which is kept among equal scores.
    """

    passages: tuple[Document, ...]

    def __post_init__(self) -> None:
        if not self.passages:
            raise DataError("the corpus holds no passage", "give at least one.")

    @classmethod
    def load(cls, path: str | Path) -> Corpus:
        """Return the corpus of a file or folder; see :func:`selfaug.data.corpus_files.read_passages`.

        Raises:
            DataError: If the path does not exist or a passage cannot be read.
        """
        return cls(tuple(read_passages(Path(path).expanduser())))

    def search(self, question: str, k: int) -> list[Document]:
        """Return the ``k`` passages with the highest BM25 scores, best first, each with its score.

        BM25 (Lucene's, k1 1.5, b 0.75) runs over title and text. Passages that share no word with the question are
        left out. Equal scores keep the corpus's order, so a question always gets the same passages.
        """
        return list(itertools.islice(self.ranked(question), max(k, 0)))

    def ranked(self, question: str) -> Iterator[Document]:
        """Yield every passage that shares a word with the question, best first; see :meth:`search`."""
        import numpy as np

        query = terms(question)
        if not query:
            return
        scores = self._index.get_scores(query)
        above = np.flatnonzero(scores > 0)
        for i in above[np.argsort(-scores[above], kind="stable")]:
            yield replace(self.passages[int(i)], score=float(scores[i]))

    @cached_property
    def _index(self) -> Any:
        import bm25s

        index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        tokens = [terms(f"{passage.title or ''} {passage.text}") for passage in self.passages]
        if not any(tokens):
            raise DataError("the corpus holds no word", "give passages of text.")
        index.index(tokens, show_progress=False)
        return index


def retrieve(
    records: Iterable[Record],
    corpus: Corpus,
    k: int,
    *,
    distractors: int = 0,
    seed: int = 0,
    shuffle: bool = True,
    exclude: Collection[str] = (),
    progress: Callable[[int], None] | None = None,
) -> list[Record]:
    """Return the records with documents from a corpus.

    A record without documents gets the ``k`` best passages, whatever they say; one with documents keeps them. Each
    record then gets ``distractors`` more passages: the best ones that it does not have yet and that contain none of its
    accepted answers. A record for which nothing is found stays without documents.

    Every document then has a score, which is higher for those to drop last. Retrieved passages have their BM25 score.
    Earlier documents, whose scores are missing or on another scale, get whole numbers above these, in the order of
    their own scores, or in the given order if a score is missing.

    Args:
        records: Records.
        corpus: Corpus of the passages.
        k: Number of passages for a record without documents; at least 0.
        distractors: Number of misleading passages for each record; at least 0.
        seed: Seed of the order of the documents.
        shuffle: Whether the documents of records with distractors are shuffled, by seed and question: if the right
            document always came first, the model would learn to read only the first.
        exclude: Normalised texts (:func:`selfaug.data.words.normalise`) that no record may get.
        progress: Function called after each record with the number of records done.

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
    filled = []
    for done, record in enumerate(records, 1):
        filled.append(_fill(record, corpus, k, distractors, seed if shuffle else None, exclude))
        if progress is not None:
            progress(done)
    return filled


def answers_found(record: Record) -> bool:
    """Tell whether a document of the record contains one of its accepted answers."""
    return any(contains(document.text, answer) for document in record.documents for answer in record.answers)


def _fill(
    record: Record, corpus: Corpus, k: int, distractors: int, seed: int | None, exclude: Collection[str]
) -> Record:
    taken = {normalise(document.text) for document in record.documents}
    number = 0 if record.documents else k
    best: list[Document] = []
    wrong: list[Document] = []
    for document in corpus.ranked(record.question):
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
    documents = [*_above(record.documents, [*best, *wrong]), *best, *wrong]
    if wrong and seed is not None:
        random.Random(f"{seed} {record.question}").shuffle(documents)
    return replace(record, documents=tuple(documents))


def _above(given: Sequence[Document], retrieved: Sequence[Document]) -> list[Document]:
    if not retrieved:
        return list(given)
    top = int(max(document.score or 0.0 for document in retrieved)) + 1
    order = sorted(range(len(given)), key=lambda i: (-(given[i].score or 0.0), i))
    if any(document.score is None for document in given):
        order = list(range(len(given)))
    rank = {place: len(given) - n for n, place in enumerate(order)}
    return [replace(document, score=float(top + rank[i])) for i, document in enumerate(given)]
