"""A BM25 index that finds the best passages without scoring all of them, and that can be mapped from disk.

Letters: ``N`` passages, ``V`` terms of the corpus, ``P`` postings (pairs of a term and a passage that holds it).
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.typing import NDArray

__all__ = ["K1", "VERSION", "B", "Counts", "Index", "count"]

VERSION = 2
"""Version of the index. It rises with every change of the terms of a text, of the scores, or of the files."""

K1, B = 1.5, 0.75
_ARRAYS = ("offsets", "passages", "scores", "highest")
_VOCABULARY = "vocabulary.arrow"
_BLOCK = 1 << 24  # number of postings whose scores are computed at once
# A search costs about 20 steps in a list of a million postings, and a step of adding the whole list one.
_SEARCH_STEPS = 16


@dataclass(frozen=True)
class Counts:
    """How often the terms of a few passages occur in each.

    Args:
        vocabulary: Different terms, in the order in which they are first met.
        lengths: Number of terms of each passage, with repetitions.
        ends: Number of postings up to the end of each passage.
        terms: For each posting the place of its term in ``vocabulary``.
        counts: For each posting the number of times that the term occurs.
    """

    vocabulary: list[str]
    lengths: NDArray[np.int32]
    ends: NDArray[np.int64]
    terms: NDArray[np.int32]
    counts: NDArray[np.float32]


def count(passages: Iterable[Sequence[str]]) -> Counts:
    """Count the terms of passages that are given as sequences of terms."""
    places: dict[str, int] = {}
    lengths: list[int] = []
    ends: list[int] = []
    terms: list[int] = []
    counts: list[int] = []
    for words in passages:
        found = Counter(words)
        terms += [places.setdefault(word, len(places)) for word in found]
        counts += found.values()
        lengths.append(len(words))
        ends.append(len(terms))
    return Counts(
        list(places),
        np.array(lengths, np.int32),
        np.array(ends, np.int64),
        np.array(terms, np.int32),
        np.array(counts, np.float32),
    )


@dataclass(frozen=True)
class Index:
    """For each term of a corpus the passages that hold it, with what it adds to their scores.

    The score of passage n for a question is the sum over the question's terms t, repetitions included, of::

        log(1 + (N - df_t + 0.5) / (df_t + 0.5)) * tf_tn / (tf_tn + K1 * (1 - B + B * length_n / mean length))

    This is BM25 as Lucene computes it (Kamphuis et al., ECIR 2020), in float32 as the package ``bm25s`` stores it.

    Args:
        size: N.
        mean_length: Mean number of terms of a passage.
        vocabulary: The V terms in ascending order, as an Arrow array of strings.
        offsets: int64, V + 1: where the postings of each term begin, and P.
        passages: int32, P: places of passages, ascending within a term.
        scores: float32, P: what the term adds to the passage's score; above 0.
        highest: float32, V: the largest of a term's scores.
    """

    size: int
    mean_length: float
    vocabulary: Any
    offsets: NDArray[np.int64]
    passages: NDArray[np.int32]
    scores: NDArray[np.float32]
    highest: NDArray[np.float32]

    @classmethod
    def of(cls, parts: Iterable[Counts]) -> Index:
        """Return the index of the passages that were counted in ``parts``, in their order."""
        from scipy.sparse import csr_matrix

        places: dict[str, int] = {}
        lengths, ends, terms, counts, last = [], [np.zeros(1, np.int64)], [], [], 0
        for part in parts:
            known = np.array([places.setdefault(word, len(places)) for word in part.vocabulary], np.int32)
            terms.append(known[part.terms])
            counts.append(part.counts)
            lengths.append(part.lengths)
            ends.append(part.ends + last)
            last += len(part.terms)
        length_N = np.concatenate(lengths)
        vocabulary = sorted(places)
        rank = np.empty(len(places), np.int32)
        rank[np.fromiter((places[word] for word in vocabulary), np.int64, len(places))] = np.arange(len(places))
        by_passage = csr_matrix(
            (np.concatenate(counts), rank[np.concatenate(terms)], np.concatenate(ends)), (len(length_N), len(places))
        )
        del terms, counts
        by_term = by_passage.tocsc()  # in the order of the passages within each term
        offsets, passages, scores = by_term.indptr.astype(np.int64), by_term.indices, by_term.data
        df_V = np.diff(offsets)
        idf_V = np.log(1 + (len(length_N) - df_V + 0.5) / (df_V + 0.5)).astype(np.float32)
        mean_length = float(length_N.mean()) or 1.0
        saturation_N = K1 * ((1 - B) + B * length_N / mean_length)
        idf_P = np.repeat(idf_V, df_V)
        for start in range(0, len(scores), _BLOCK):
            block = slice(start, start + _BLOCK)
            tf = scores[block]
            scores[block] = idf_P[block] * (tf / (saturation_N[passages[block]] + tf))
        highest = np.maximum.reduceat(scores, offsets[:-1]) if len(scores) else np.zeros(0, np.float32)
        return cls(
            len(length_N), mean_length, pa.array(vocabulary, pa.large_string()), offsets, passages, scores, highest
        )

    def save(self, folder: Path) -> None:
        """Write the index into a folder, for :meth:`open`."""
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))
        np.save(folder / "mean_length.npy", self.mean_length)
        table = pa.table({"term": self.vocabulary})
        with pa.OSFile(str(folder / _VOCABULARY), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    @classmethod
    def open(cls, folder: Path, size: int) -> Index:
        """Return the index of ``size`` passages that lies in a folder, mapped into memory."""
        table = pa.ipc.open_file(pa.memory_map(str(folder / _VOCABULARY))).read_all()
        vocabulary = table.column("term").combine_chunks() if table.num_rows else pa.array([], pa.large_string())
        arrays = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS)
        mean_length = float(np.load(folder / "mean_length.npy"))
        return cls(
            size, mean_length, vocabulary, *(array.view(np.ndarray) for array in arrays)
        )  # slices cost less than memmap's

    def top(self, terms: Sequence[str], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the places and scores of the ``k`` best passages, best first; equal scores in the corpus's order.

        Passages without any of the terms are left out. The rarest terms are added first. As soon as the terms that
        are left cannot lift another passage among the best k (MaxScore, Turtle and Flood 1995), they are looked up
        only for the passages that still can be. The result is exact: the scores of those that are left are summed
        anew, in the order of the question's terms.
        """
        asked = [place for term in terms if (place := self._place(term)) is not None]
        if not asked or k < 1:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        times = Counter(asked)
        rarest_first = sorted(times, key=lambda term: -times[term] * float(self.highest[term]))
        bounds = [times[term] * float(self.highest[term]) for term in rarest_first]
        # No sum of these in float32, in any order, is further from the exact one than this.
        margin = (len(asked) + 1) * 2.0**-23 * sum(bounds)
        candidates = self._candidates(rarest_first, times, bounds, margin, k)
        scores = np.zeros(len(candidates), np.float32)
        added = {term: self._looked_up(term, candidates) for term in times}
        for term in asked:
            scores += added[term]
        order = np.argsort(-scores, kind="stable")[:k]
        return candidates[order].astype(np.int64), scores[order]

    def score(self, terms: Sequence[str], passage: Sequence[str]) -> float:
        """Return the score for a question's ``terms`` that a text of the terms ``passage`` would have here."""
        saturation = K1 * ((1 - B) + B * len(passage) / self.mean_length)
        times, total = Counter(passage), 0.0
        for term in (term for term in terms if term in times):
            place = self._place(term)
            df = 0 if place is None else int(self.offsets[place + 1] - self.offsets[place])
            idf = math.log(1 + (self.size - df + 0.5) / (df + 0.5))
            total += idf * times[term] / (saturation + times[term])
        return total

    def _candidates(
        self, order: Sequence[int], times: Counter[int], bounds: Sequence[float], margin: float, k: int
    ) -> NDArray[np.int32]:
        """Return, ascending, passages among which the best ``k`` are."""
        sums_N = np.zeros(self.size, np.float32)
        lists: list[NDArray[np.int32]] = []
        least, done = 0.0, 0  # the k-th best passage has at least this score
        for done, term in enumerate(order, 1):
            passages, scores = self._postings(term)
            sums_N[passages] += scores if times[term] == 1 else times[term] * scores
            lists.append(passages)
            left = sum(bounds[done:])
            reached = sums_N[passages]
            reached = reached[reached > least]
            if len(reached) >= k:
                least = float(np.partition(reached, len(reached) - k)[len(reached) - k])
            if least - margin > left:  # no passage that has none of these terms can be among the best
                break
        left = sum(bounds[done:])
        found = np.unique(np.concatenate([each[sums_N[each] >= least - left - margin] for each in lists]))
        sums = sums_N[found]
        for place in range(done, len(order)):
            if len(found) <= k:
                break
            sums = sums + times[order[place]] * self._looked_up(order[place], found)
            left = sum(bounds[place + 1 :])
            least = max(least, float(np.partition(sums, len(sums) - k)[len(sums) - k]))
            keep = sums >= least - left - margin
            found, sums = found[keep], sums[keep]
        return found

    def _looked_up(self, term: int, passages: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return what a term adds to the score of each of the ``passages``, which are ascending."""
        holders, scores = self._postings(term)
        if len(passages) * _SEARCH_STEPS > len(holders):
            at_N = np.zeros(self.size, np.float32)
            at_N[holders] = scores
            return at_N[passages]
        at = np.minimum(np.searchsorted(holders, passages), len(holders) - 1)
        return np.where(holders[at] == passages, scores[at], np.float32(0))

    def _postings(self, term: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        start, end = int(self.offsets[term]), int(self.offsets[term + 1])
        return self.passages[start:end], self.scores[start:end]

    def _place(self, term: str) -> int | None:
        place = bisect.bisect_left(range(len(self.vocabulary)), term, key=lambda at: self.vocabulary[at].as_py())
        known = place < len(self.vocabulary) and self.vocabulary[place].as_py() == term
        return place if known else None
