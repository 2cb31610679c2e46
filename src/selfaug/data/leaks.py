"""Counts what held-out examples share with the training data: rows, documents, questions and titles.

Training texts are kept as hashes, so memory grows by some 100 bytes for each distinct training document.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from selfaug.data.split import Example, asked_of, documents_of, plain, question_of, row_of, titles_of

__all__ = ["Leaks", "check_leaks"]

# Share of the shorter text's word runs that near duplicates have in common. It leaves out DPR's neighbouring passages,
# which overlap by half.
_NEAR_SHARE = 0.8
_RUN_LENGTH = 8  # words
_MAX_EXAMPLES = 5  # number of texts of each kind in a report
_BATCH = 512  # number of documents that are compared in one call
# Word hashes are polynomials in _BASE with a random code for each byte; _MIX spreads their bits.
_CODES = np.random.default_rng(8).integers(0, 1 << 64, 256, np.uint64, endpoint=False)
_BASE = 0x5851F42D4C957F2D
_MIX = np.uint64(0x9E3779B97F4A7C15)
_FILTER_BITS = 22  # leading bits of a hash that index the filter, which then takes 4 MiB


@dataclass(frozen=True)
class Leaks:
    """The texts and rows that held-out examples share with the training data.

    Each list contains distinct texts of the held-out examples; texts that differ only in case, spacing and punctuation
    count as one.

    Args:
        rows: Questions of examples that are also training examples: same question, documents and answers.
        documents: Documents that are also in the training data.
        questions: Questions (:func:`selfaug.data.split.question_of`) that are also in the training data; those of
            examples with documents, with the same answer.
        near_duplicates: Pairs of a document and a training document that are not equal, but of which the shorter one
            shares at least 4/5 of its runs of 8 words with the other; one pair for each held-out document.
        other_answers: Questions to which the training data has another answer. They are no leak: "What is this text
            about?" may be asked of every document.
        titles: Titles of documents that are also in the training data; no leak by themselves.
        shared_rows: Number of examples that are also training examples.
        exact_rows: Number of examples that are training examples character for character.
        exact_documents: Number of documents that are in the training data character for character.
        document_rows: Number of examples with one of ``documents``.
        question_rows: Number of examples with one of ``questions``.
        near_duplicate_rows: Number of examples with a near duplicate.
        other_answer_rows: Number of examples with one of ``other_answers``.
        title_rows: Number of examples with one of ``titles``.
        examples: Number of held-out examples.
        training_places: Indices of the training examples that share a document, a near duplicate or a question.
    """

    rows: list[str] = field(default_factory=list)
    documents: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    near_duplicates: list[tuple[str, str]] = field(default_factory=list)
    other_answers: list[str] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)
    shared_rows: int = 0
    exact_rows: int = 0
    exact_documents: int = 0
    document_rows: int = 0
    question_rows: int = 0
    near_duplicate_rows: int = 0
    other_answer_rows: int = 0
    title_rows: int = 0
    examples: int = 0
    training_places: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.rows or self.documents or self.questions or self.near_duplicates)

    def counts(self) -> dict[str, Any]:
        """Return the counts of :meth:`as_dict` without texts."""
        return {
            kind: {name: value for name, value in part.items() if name != "first"}
            for kind, part in self.as_dict().items()
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the counts of distinct texts and of rows, and the first few texts in short, as JSON."""

        def part(texts: Sequence[str | tuple[str, str]], rows: int, **more: int) -> dict[str, Any]:
            first = [(text,) if isinstance(text, str) else text for text in texts[:_MAX_EXAMPLES]]
            return {"count": len(texts), "rows": rows, **more, "first": [[t[:200] for t in some] for some in first]}

        return {
            "shared_rows": {**part(self.rows, self.shared_rows, exact=self.exact_rows), "count": self.shared_rows},
            "shared_documents": part(self.documents, self.document_rows, exact=self.exact_documents),
            "shared_questions": part(self.questions, self.question_rows),
            "near_duplicate_documents": part(self.near_duplicates, self.near_duplicate_rows),
            "questions_with_another_answer": part(self.other_answers, self.other_answer_rows),
            "shared_titles": part(self.titles, self.title_rows),
        }

    def lines(self) -> list[str]:
        """Return lines for the user: one for each kind of leak, or that there is none; then shared titles and such."""
        leaks = [
            (
                self.shared_rows,
                f"{_count(self.shared_rows, 'row')} of {self.examples} are also rows of the training data"
                f" ({self.exact_rows} letter by letter)",
            ),
            (
                self.documents,
                f"{_count(self.documents, 'distinct document')} (in {_count(self.document_rows, 'row')} of"
                f" {self.examples}) are also in the training data ({self.exact_documents} letter by letter)",
            ),
            (
                self.questions,
                f"{_count(self.questions, 'distinct question')} (in {_count(self.question_rows, 'row')} of"
                f" {self.examples}) are also asked in the training data",
            ),
            (
                self.near_duplicates,
                f"{_count(self.near_duplicates, 'distinct document')} (in {_count(self.near_duplicate_rows, 'row')} of"
                f" {self.examples}) are nearly equal to one in the training data",
            ),
        ]
        lines = [f"leak: {text}" for shared, text in leaks if shared] or [
            "no leak: no shared row, document or question"
        ]
        if self.other_answers:
            lines.append(
                f"{_count(self.other_answers, 'distinct question')} (in {_count(self.other_answer_rows, 'row')}):"
                " the training data asks the same and has another answer"
            )
        if self.titles:
            lines.append(
                f"{_count(self.titles, 'distinct title')} (in {_count(self.title_rows, 'row')}) are also in the"
                " training data; `selfaug prepare --group_by title` keeps a title on one side"
            )
        return lines

    def warning(self, name: str) -> list[str]:
        """Return a warning that the data set of this name is not independent, as lines; none where it is."""
        if self:
            return [f"{name} is not independent of the training data:", *(f"  {line}" for line in self.lines())]
        return [f"{name}: {line}" for line in self.lines()[1:] if self.other_answers]


def check_leaks(train: Iterable[Example], held_out: Sequence[Example]) -> Leaks:
    """Return what the held-out examples share with the training examples.

    Args:
        train: Training examples, which are iterated over twice.
        held_out: Held-out examples. Only these are indexed, since they are usually few.
    """
    index = _Index(held_out)
    places = {place for place, example in enumerate(train) if index.meet(example)}
    index.finish()
    for place, example in enumerate(train):
        if index.leaking and any(_digest(text) in index.leaking for text in documents_of(example)):
            places.add(place)
    return index.leaks(held_out, frozenset(places))


class _Index:
    """Hashes of the held-out examples, and those of them that the training examples share."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.documents: dict[bytes, str] = {}
        self.exact: dict[bytes, bytes] = {}  # hash of the text → hash of the normalised text
        self.questions = {_question(example) for example in examples}
        self.asked = {_key(asked_of(example)) for example in examples}
        runs = []
        for example in examples:
            for text in documents_of(example):
                exact = _digest(text)
                if exact not in self.exact:
                    normal = plain(text)
                    self.exact[exact] = key = _digest(normal)
                    if key not in self.documents:
                        self.documents[key] = text
                        runs.append(normal)
        self.near = _Near(list(self.documents), runs)
        self.met_documents: set[bytes] = set()
        self.met_exactly: set[bytes] = set()
        self.met_questions: set[bytes] = set()
        self.met_asked: set[bytes] = set()
        self.met_titles: set[str] = set()  # titles of all training documents: there are few
        self.met_rows: set[bytes] = set()
        self.met_rows_exactly: set[bytes] = set()
        self.leaking: set[bytes] = set()
        """Hashes of the training documents of which a held-out example has a copy or near duplicate."""
        self._seen: set[bytes] = set()
        self._waiting: list[tuple[bytes, str, str]] = []

    def meet(self, example: Example) -> bool:
        """Note what a training example shares, and return whether it shares a question.

        Its documents are compared for near duplicates when a batch is full, or by :meth:`finish`.
        """
        shared, asked = False, _key(asked_of(example))
        if asked in self.asked:
            self.met_asked.add(asked)
            question = _question(example)
            if question in self.questions:
                shared = True
                self.met_questions.add(question)
                self.met_rows.add(_row(example))
                self.met_rows_exactly.add(_exact_row(example))
        for text in documents_of(example):
            exact = _digest(text)
            if exact in self._seen:
                continue
            self._seen.add(exact)
            normal = plain(text)
            key = _digest(normal)
            if key in self.documents:
                self.met_documents.add(key)
                self.leaking.add(exact)
                if exact in self.exact:
                    self.met_exactly.add(exact)
            self._waiting.append((exact, text, normal))
            if len(self._waiting) >= _BATCH:
                self.finish()
        self.met_titles.update(titles_of(example))
        return shared

    def finish(self) -> None:
        """Compare the documents that wait for a full batch."""
        waiting, self._waiting = self._waiting, []
        for place in self.near.meet([(text, normal) for _, text, normal in waiting]):
            self.leaking.add(waiting[place][0])

    def leaks(self, examples: Sequence[Example], places: frozenset[int]) -> Leaks:
        near = {key: text for key, text in self.near.partners.items() if key not in self.met_documents}
        rows, questions, others, titles = {}, {}, {}, {}  # type: ignore[var-annotated]
        counts = dict.fromkeys(("row", "exact", "document", "question", "near", "other", "title"), 0)
        met_titles = {plain(title) for title in self.met_titles}
        for example in examples:
            row, question, asked = _row(example), _question(example), _key(asked_of(example))
            if row in self.met_rows:
                rows[row] = asked_of(example)
                counts["row"] += 1
                counts["exact"] += _exact_row(example) in self.met_rows_exactly
            if question in self.met_questions:
                questions.setdefault(question, question_of(example))
                counts["question"] += 1
            elif asked in self.met_asked:
                others.setdefault(asked, asked_of(example))
                counts["other"] += 1
            keys = {self.exact[_digest(text)] for text in documents_of(example)}
            counts["document"] += not keys.isdisjoint(self.met_documents)
            counts["near"] += not keys.isdisjoint(near)
            own_titles = {plain(title): title for title in titles_of(example)}
            shared_titles = {key: title for key, title in own_titles.items() if key in met_titles}
            titles = shared_titles | titles
            counts["title"] += bool(shared_titles)
        return Leaks(
            rows=list(rows.values()),
            documents=[text for key, text in self.documents.items() if key in self.met_documents],
            questions=list(questions.values()),
            near_duplicates=[(self.documents[key], near[key]) for key in self.documents if key in near],
            other_answers=list(others.values()),
            titles=list(titles.values()),
            shared_rows=counts["row"],
            exact_rows=counts["exact"],
            exact_documents=len({self.exact[exact] for exact in self.met_exactly}),
            document_rows=counts["document"],
            question_rows=counts["question"],
            near_duplicate_rows=counts["near"],
            other_answer_rows=counts["other"],
            title_rows=counts["title"],
            examples=len(examples),
            training_places=places,
        )


class _Near:
    """Word runs of the held-out documents, and the training documents that share most of them.

    Args:
        keys: Hashes that identify the documents.
        texts: Normalised texts of the documents.
    """

    def __init__(self, keys: Sequence[bytes], texts: Sequence[str]) -> None:
        self.keys = keys
        self.partners: dict[bytes, str] = {}
        batches = [
            (runs, owners + start)
            for start in range(0, len(texts), _BATCH)
            for runs, owners in (_distinct(*_runs(texts[start : start + _BATCH])),)
        ]
        runs = np.concatenate([runs for runs, _ in batches]) if batches else np.empty(0, np.uint64)
        owners = np.concatenate([owners for _, owners in batches]) if batches else np.empty(0, np.int64)
        order = np.argsort(runs, kind="stable")
        self.runs, self.owners = runs[order], owners[order]
        self.sizes = np.bincount(owners, minlength=len(keys))
        self.filter = np.zeros(1 << _FILTER_BITS, bool)  # rules most runs of training documents out in one lookup
        self.filter[runs >> np.uint64(64 - _FILTER_BITS)] = True

    def meet(self, texts: Sequence[tuple[str, str]]) -> list[int]:
        """Note the held-out documents that training documents nearly equal, and return the indices of the latter.

        Args:
            texts: Pairs of the text and the normalised text of training documents.
        """
        if not texts or not len(self.runs):
            return []
        runs, owners = _runs([normal for _, normal in texts])
        maybe = np.flatnonzero(self.filter[runs >> np.uint64(64 - _FILTER_BITS)])
        there = np.searchsorted(self.runs, runs[maybe])
        hit = maybe[self.runs[np.minimum(there, len(self.runs) - 1)] == runs[maybe]]
        near = []
        # Few documents share a run at all, so a loop over them is fast enough.
        for place in np.unique(owners[hit]):
            own = np.unique(runs[owners == place])
            first, last = np.searchsorted(self.runs, own, "left"), np.searchsorted(self.runs, own, "right")
            others = np.concatenate([self.owners[a:b] for a, b in zip(first, last, strict=True) if b > a])
            partners, common = np.unique(others, return_counts=True)
            enough = partners[common >= _NEAR_SHARE * np.minimum(len(own), self.sizes[partners])]
            for other in enough:
                self.partners.setdefault(self.keys[other], texts[place][0])
            if len(enough):
                near.append(int(place))
        return near


def _runs(texts: Sequence[str]) -> tuple[Any, Any]:
    """Return the hashes of all runs of 8 words of normalised texts, and the index of each run's text.

    A shorter text is one run.
    """
    lengths = np.array([text.count(" ") + 1 for text in texts])
    codes = _word_hashes(texts)
    # A text of fewer words is padded with zeros, so that each text has at least one run.
    padded = np.maximum(lengths, _RUN_LENGTH)
    owners = np.repeat(np.arange(len(texts)), padded)
    within = np.arange(len(owners)) - (np.cumsum(padded) - padded)[owners]
    filled = np.zeros(len(owners), np.uint64)
    filled[within < lengths[owners]] = codes
    runs = np.zeros(len(owners), np.uint64)
    for k in range(_RUN_LENGTH):
        runs[: len(owners) - k] = runs[: len(owners) - k] * _MIX + filled[k:]
    whole = within <= padded[owners] - _RUN_LENGTH
    return runs[whole], owners[whole]


def _word_hashes(texts: Sequence[str]) -> Any:
    """``sum_i code[byte_i] · base^i mod 2^64``, with mixed bits: a hash of each word of all texts, split at spaces."""
    raw = np.frombuffer((" ".join(texts) + " ").encode("utf-8", "surrogatepass"), np.uint8)
    ends = np.flatnonzero(raw == ord(" "))
    sums = np.cumsum(_CODES[raw] * _powers(_BASE, len(raw)))
    starts = np.concatenate(([0], ends[:-1] + 1))
    sums_before = np.concatenate((np.zeros(1, np.uint64), sums[ends[:-1]]))
    hashes = (sums[ends] - sums_before) * _powers(pow(_BASE, -1, 1 << 64), len(raw))[starts]
    return (hashes ^ (hashes >> np.uint64(31))) * _MIX


def _powers(base: int, count: int) -> Any:
    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


def _distinct(runs: Any, owners: Any) -> tuple[Any, Any]:
    order = np.lexsort((runs, owners))
    runs, owners = runs[order], owners[order]
    first = np.ones(len(runs), bool)
    first[1:] = (runs[1:] != runs[:-1]) | (owners[1:] != owners[:-1])
    return runs[first], owners[first]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _key(text: str) -> bytes:
    return _digest(plain(text))


def _question(example: Example) -> bytes:
    return _key(question_of(example))


def _row(example: Example) -> bytes:
    """Return a hash of question, documents in any order and answers that ignores case, spacing and punctuation."""
    documents = sorted(_key(text) for text in documents_of(example))
    return _digest("\n".join([plain(text) for text in row_of(example)] + [key.hex() for key in documents]))


def _exact_row(example: Example) -> bytes:
    return _digest("\n".join([*row_of(example), *(text for text in documents_of(example))]))


def _count(counted: int | Sequence[Any], what: str) -> str:
    number = counted if isinstance(counted, int) else len(counted)
    return f"{number} {what}{'' if number == 1 else 's'}"
