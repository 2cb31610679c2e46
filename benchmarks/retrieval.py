"""What does a BM25 search cost at 100,000 and at a million passages, against scoring every passage (bm25s)?"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import bm25s
import numpy as np
from measure import CLOCKS, Demand, add_common_options, report, table

from selfaug.data.bm25 import Counts, Index, count

CHUNK = 5000
WORDS = 2_000_000  # of the language; word n is as frequent as 1 / n (Zipf)


def passages(number: int, random: np.random.Generator) -> Iterator[list[list[str]]]:
    """Passages of 60 to 139 words, drawn independently, in chunks."""
    chances = np.cumsum(1 / np.arange(1, WORDS + 1))
    for start in range(0, number, CHUNK):
        lengths = random.integers(60, 140, min(CHUNK, number - start))
        words = np.searchsorted(chances, random.random(lengths.sum()) * chances[-1])
        ends = np.cumsum(lengths)
        yield [[f"w{word}" for word in words[end - length : end]] for end, length in zip(ends, lengths, strict=True)]


def questions(texts: list[list[str]], number: int, random: np.random.Generator) -> list[list[str]]:
    """Six words of a passage and four of the language each, so about four of the ten are among the most frequent."""
    chances = np.cumsum(1 / np.arange(1, WORDS + 1))
    asked = []
    for _ in range(number):
        own = random.choice(texts[random.integers(len(texts))], 6)
        asked.append([*map(str, own), *(f"w{i}" for i in np.searchsorted(chances, random.random(4) * chances[-1]))])
    return asked


def main() -> int:
    """Index, map, search, compare and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: with OMP_NUM_THREADS=1.")
    add_common_options(parser)
    arguments = parser.parse_args()
    now, random = CLOCKS[arguments.clock], np.random.default_rng(0)
    sample: list[list[str]] = []
    spent = 0.0

    def counted() -> Iterator[Counts]:
        nonlocal spent
        for texts in passages(arguments.passages, random):
            sample.extend(texts[:100])
            start = now()
            part = count(texts)
            spent += now() - start
            yield part

    start = now()
    made = Index.of(counted())
    whole = now() - start
    asked = questions(sample, arguments.questions, random)
    figures: dict[str, float] = {
        "passages": made.size,
        "terms": len(made.vocabulary),
        "postings": len(made.scores),
        "counting (s)": spent,
        "counting, sorting and the making of the passages (s)": whole,
    }
    with tempfile.TemporaryDirectory() as folder:
        made.save(Path(folder))
        figures["MiB on disk"] = sum(file.stat().st_size for file in Path(folder).iterdir()) / 2**20
        start = now()
        index = Index.open(Path(folder), made.size)
        figures["opening (ms)"] = 1000 * (now() - start)
        # The same index for bm25s, whose own making holds every term of every passage as a Python object.
        other = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        other.scores = {"data": made.scores, "indices": made.passages, "indptr": made.offsets, "num_docs": made.size}
        known = {term: place for place, term in enumerate(made.vocabulary.to_pylist())}
        other.vocab_dict, other.nonoccurrence_array = known, None
        ratios = []
        for k in (5, 20, 100):
            ours, theirs = [], []
            for terms in asked:
                start = now()
                places, scores = index.top(terms, k)
                ours.append(now() - start)
                start = now()
                all_scores = other.get_scores(terms)
                above = np.flatnonzero(all_scores > 0)
                order = above[np.argsort(-all_scores[above], kind="stable")][:k]
                theirs.append(now() - start)
                assert places.tolist() == order.tolist()
                assert scores.tolist() == all_scores[order].tolist()
            figures[f"k = {k}: ms a question, mean"] = 1000 * statistics.mean(ours)
            figures[f"k = {k}: slowest of the questions (ms)"] = 1000 * max(ours)
            figures[f"k = {k}: scoring every passage, ms, mean"] = 1000 * statistics.mean(theirs)
            ratios.append(statistics.mean(ours) / statistics.mean(theirs))
            figures[f"k = {k}: ratio"] = ratios[-1]
    figures["peak memory of this process (MiB)"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    demands = [Demand("k = 5: time against scoring every passage", ratios[0], 0.6, at_least=False)]
    if arguments.passages <= 100_000:
        demands.append(Demand("k = 5: ms a question", figures["k = 5: ms a question, mean"], 5.0, at_least=False))
    shown = [[name, f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"] for name, value in figures.items()]
    return report([table(["figure", "value"], shown)], demands, {"figures": figures}, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
