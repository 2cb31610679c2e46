"""A corpus of passages that BM25 searches, kept on disk with its index."""

from __future__ import annotations

import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import pyarrow as pa  # type: ignore[import-untyped]

from selfaug.common.errors import ConfigError, DataError
from selfaug.common.fingerprint import file_hash, versions
from selfaug.common.processes import chunked, in_order
from selfaug.data.bm25 import K1, VERSION, B, Counts, Index, count
from selfaug.data.corpus_files import corpus_files, read_passages
from selfaug.data.record import Document
from selfaug.data.stored import find_or_make
from selfaug.data.words import terms

__all__ = ["Corpus", "Ranked", "passage_text"]

_PASSAGES = "passages.arrow"
_CHUNK = 5000  # number of passages that go to a process at once


class Ranked(ABC):
    """Passages that can be ranked for a question."""

    passages: Sequence[Document]
    """The passages in the order of their files."""

    @abstractmethod
    def top(self, question: str, k: int) -> list[tuple[int, float]]:
        """Return the places and scores of the ``k`` best passages, best first; equal scores in the passages' order."""

    @abstractmethod
    def score(self, question: str, document: Document) -> float:
        """Return the score that a document would have for the question if it were a passage of the corpus."""

    def search(self, question: str, k: int) -> list[Document]:
        """Return the ``k`` best passages, best first, each with its score."""
        return list(itertools.islice(self.ranked(question, k), max(k, 0)))

    def ranked(self, question: str, first: int = 16) -> Iterator[Document]:
        """Yield the passages, best first, each with its score.

        Args:
            question: Question.
            first: Number of passages that will probably do. Four times as many are looked for whenever they do not.
        """
        seen, k = 0, max(first, 1)
        while True:
            found = self.top(question, k)
            for place, score in found[seen:]:
                yield replace(self.passages[place], score=score)
            if len(found) < k:
                return
            seen, k = k, 4 * k


class Corpus(Ranked):
    """Passages and their BM25 index; see :class:`selfaug.data.bm25.Index`.

    Args:
        passages: Passages in the order of their files, which is kept among equal scores.
        index: Their index; ``None`` to make it when it is first used.
        folder: Folder in which both are kept; ``None`` for memory.
    """

    def __init__(self, passages: Sequence[Document], index: Index | None = None, folder: Path | None = None) -> None:
        if not passages:
            raise DataError("the corpus holds no passage", "give at least one.")
        self.passages = passages
        self.folder = folder
        self._index = index

    def __reduce__(self) -> tuple[Any, ...]:
        # A corpus on disk goes to other processes as the name of its folder.
        if self.folder is None:
            return Corpus, (self.passages, self._index)
        return _opened, (self.folder, len(self.passages))

    @classmethod
    def load(
        cls, path: str | Path, processes: int | None = None, progress: Callable[[int], None] | None = None
    ) -> Corpus:
        """Return the corpus of a file or folder; see :func:`selfaug.data.corpus_files.read_passages`.

        Passages and index are kept on disk under a hash of the files' names and contents
        (:func:`selfaug.data.stored.find_or_make`), and mapped into memory.

        Args:
            path: File or folder.
            processes: Number of processes that split the passages into terms; ``None`` for this one alone.
            progress: Function called with the number of passages that are indexed, where they are not yet.

        Raises:
            DataError: If the path does not exist, a passage cannot be read, or none holds a word.
            ConfigError: If the index cannot be written.
        """
        path = Path(path).expanduser()

        def make(folder: Path) -> dict[str, Any]:
            made = _indexed(_written(read_passages(path), folder / _PASSAGES), processes or 1, progress)
            made.save(folder)
            return {"passages": made.size}

        files = [[file.name, file_hash(file)] for file in corpus_files(path)]
        deciding = {"bm25": [VERSION, K1, B], "regex": versions("regex")["regex"], "files": files}
        folder, facts = find_or_make(deciding, make)
        return _opened(folder, facts["passages"])

    def top(self, question: str, k: int) -> list[tuple[int, float]]:
        """Return the places and BM25 scores of the ``k`` best passages that share a word with the question.

        BM25 (Lucene's, k1 1.5, b 0.75) runs over title and text.
        """
        places, scores = self.index.top(terms(question), k)
        return list(zip(places.tolist(), scores.tolist(), strict=True))

    def score(self, question: str, document: Document) -> float:  # noqa: D102
        return self.index.score(terms(question), terms(passage_text(document)))

    @property
    def index(self) -> Index:
        """The index of the passages."""
        if self._index is None:
            self._index = _indexed(self.passages, 1, None)
        return self._index


def _opened(folder: Path, size: int) -> Corpus:
    return Corpus(_Rows(folder / _PASSAGES), Index.open(folder, size), folder)


class _Rows(Sequence[Document]):
    """The passages of a file of :func:`_written`."""

    def __init__(self, path: Path) -> None:
        self._column = pa.ipc.open_file(pa.memory_map(str(path))).read_all().column(0)

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, place: int) -> Document: ...
    @overload
    def __getitem__(self, place: slice) -> list[Document]: ...
    def __getitem__(self, place: int | slice) -> Document | list[Document]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        return Document(**json.loads(self._column[place].as_py()))


def _written(passages: Iterable[Document], path: Path) -> Iterator[Document]:
    """Yield the passages, and write them into a file that can be mapped."""
    schema = pa.schema({"passage": pa.string()})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for chunk in chunked(passages, _CHUNK):
            writer.write_batch(pa.record_batch([[json.dumps(passage.to_row()) for passage in chunk]], schema=schema))
            yield from chunk


def _indexed(passages: Iterable[Document], processes: int, progress: Callable[[int], None] | None) -> Index:
    killed = ConfigError(
        f"one of the {processes} processes that index the passages was killed, probably for want of memory",
        "lower --dataset_num_proc, or leave it out.",
    )
    parts = in_order(_counts, None, chunked(passages, _CHUNK), processes, killed)
    index = Index.of(_counting(parts, progress or (lambda _: None)))
    if not len(index.vocabulary):
        raise DataError("the corpus holds no word", "give passages of text.")
    return index


def _counting(parts: Iterable[Counts], progress: Callable[[int], None]) -> Iterator[Counts]:
    done = 0
    for part in parts:
        yield part
        done += len(part.lengths)
        progress(done)


def _counts(_: None, passages: Sequence[Document]) -> Counts:
    return count(terms(passage_text(passage)) for passage in passages)


def passage_text(passage: Document) -> str:
    """Return what is searched of a passage: its title and its text."""
    return f"{passage.title or ''} {passage.text}"
