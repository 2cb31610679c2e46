"""Are the passages that are found without scoring all of them the ones that scoring all of them finds?"""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path
from typing import ClassVar

import bm25s
import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfaug.common.fingerprint import text_hash
from selfaug.data.bm25 import VERSION, Index, count
from selfaug.data.corpus import Corpus
from selfaug.data.record import Document, Record
from selfaug.data.retrieve import retrieve, search_all
from selfaug.data.words import terms


class Watched(Index):
    """An index that keeps how many passages of the last question were summed anew."""

    summed: ClassVar[list[int]] = []

    def _candidates(self, *args):
        found = super()._candidates(*args)
        self.summed.append(len(found))
        return found


def zipf(passages: int, words: int, seed: int) -> list[list[str]]:
    """Texts whose words are as unequally frequent as those of a language."""
    random = np.random.default_rng(seed)
    weights = 1 / np.arange(1, words + 1)
    lengths = random.integers(3, 40, passages)
    return [[f"w{i}" for i in random.choice(words, length, p=weights / weights.sum())] for length in lengths]


def made(texts: list[list[str]], size: int = 7) -> Index:
    return Index.of([count(texts[i : i + size]) for i in range(0, len(texts), size)])


def all_scores(texts: list[list[str]]) -> bm25s.BM25:
    """The index of bm25s, which scores all passages."""
    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    index.index(texts, show_progress=False)
    return index


def scored(index: bm25s.BM25, asked: list[str], k: int) -> tuple[list[int], list[float]]:
    scores = index.get_scores(asked)
    above = np.flatnonzero(scores > 0)
    order = above[np.argsort(-scores[above], kind="stable")][:k]
    return order.tolist(), scores[order].tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(2, 30), st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 70))
def test_places_ties_and_scores_are_bit_for_bit_those_of_scoring_all(
    passages: int, words: int, seed: int, asked: int, k: int
) -> None:
    texts = zipf(passages, words, seed)
    question = [f"w{i}" for i in np.random.default_rng(seed + 1).integers(0, words + 3, asked)]  # some are unknown
    oracle = all_scores(texts)
    places, scores = made(texts).top(question, k)
    assert (places.tolist(), scores.tolist()) == scored(oracle, question, k)


def test_the_same_where_most_passages_are_never_looked_at() -> None:
    texts = zipf(5000, 3000, 0)
    index = made(texts, 500)
    watched = Watched(**{name: getattr(index, name) for name in Index.__dataclass_fields__})
    oracle = all_scores(texts)
    random = np.random.default_rng(1)
    few = 0
    for _ in range(30):
        question = [*random.choice(texts[random.integers(5000)], 3), "w0", "w1", "w1"]
        for k in (1, 5, 60, 4000):
            places, scores = watched.top(question, k)
            assert (places.tolist(), scores.tolist()) == scored(oracle, question, k)
            few += k == 5 and watched.summed[-1] < len(scored(oracle, question, 5000)[0]) / 20
    assert few > 15


def test_an_index_comes_back_from_its_folder(tmp_path: Path) -> None:
    texts = zipf(300, 100, 3)
    index = made(texts)
    index.save(tmp_path)
    again = Index.open(tmp_path, 300)
    assert isinstance(again.scores.base, np.memmap)
    for question in (["w1", "w50"], ["w0"], ["nothing"], []):
        for one, other in zip(index.top(question, 9), again.top(question, 9), strict=True):
            assert one.tolist() == other.tolist()


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "corpus.jsonl"
    rows = [{"id": str(i), "title": f"t{i % 7}", "text": " ".join(words)} for i, words in enumerate(zipf(400, 80, 5))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_a_corpus_is_read_once_and_found_by_its_content(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Corpus.load(corpus)
    assert first.folder is not None
    assert list(first.passages) == list(Corpus(list(first.passages)).passages)
    assert first.search("w3 w5", 9) == Corpus(tuple(first.passages)).search("w3 w5", 9) != []
    with monkeypatch.context() as patched:
        patched.setattr("selfaug.data.corpus.read_passages", None)  # not called again
        assert Corpus.load(corpus).search("w3 w5", 9) == first.search("w3 w5", 9)
    corpus.write_text(corpus.read_text("utf-8") + json.dumps({"text": "w3 w5 w3 w5"}) + "\n", "utf-8")
    changed = Corpus.load(corpus)
    assert changed.folder != first.folder
    assert changed.search("w3 w5", 1)[0].text == "w3 w5 w3 w5"


@pytest.mark.parametrize("name", ["scores.npy", "passages.arrow", "vocabulary.arrow"])
def test_a_torn_index_is_made_anew(corpus: Path, name: str) -> None:
    first = Corpus.load(corpus)
    found, folder = first.search("w3 w5", 9), first.folder
    assert folder is not None
    torn = folder / name
    content = torn.read_bytes()
    torn.unlink()  # the first corpus has the old file mapped
    torn.write_bytes(content[:-9])
    assert Corpus.load(corpus).search("w3 w5", 9) == found
    assert torn.read_bytes() == content


def _load(path: str, cache: str, queue: multiprocessing.Queue) -> None:
    datasets.config.HF_DATASETS_CACHE = Path(cache)
    found = Corpus.load(path)
    queue.put((str(found.folder), [d.id for d in found.search("w3 w5", 9)]))


def test_processes_that_start_at_once_get_one_whole_index(corpus: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    both = [context.Process(target=_load, args=(str(corpus), str(tmp_path / "both"), queue)) for _ in range(2)]
    for process in both:
        process.start()
    results = [queue.get(timeout=60) for _ in both]
    for process in both:
        process.join()
    assert results[0] == results[1]
    assert [folder.name for folder in (tmp_path / "both" / "selfaug").iterdir()] == [Path(results[0][0]).name]
    shutil.rmtree(tmp_path / "both")


def test_two_processes_find_what_one_finds(corpus: Path) -> None:
    held = Corpus.load(corpus, 2)
    assert held.search("w3 w5", 9) == Corpus(tuple(held.passages)).search("w3 w5", 9)
    records = [Record(f"w{i % 40} w{i % 11}", (), (f"w{i % 5}",), str(i)) for i in range(120)]
    alone = retrieve(records, held, 2, distractors=3)
    done: list[int] = []
    assert retrieve(records, held, 2, distractors=3, processes=2, progress=done.append) == alone
    assert done[-1] == 120
    asked = [(record.question, 4) for record in records]
    assert search_all(held, asked, 2) == search_all(held, asked) == [held.search(*each) for each in asked]


def test_the_search_goes_on_until_enough_distractors_are_found() -> None:
    # The 300 best passages hold the answer; the 301st and the 302nd are the distractors.
    texts = ["cat yes"] * 300 + ["cat no no no", "cat other words in a row of many"] + ["dog"] * 50
    passages = tuple(Document(f"{text} {i}", id=str(i)) for i, text in enumerate(texts))
    record = Record("cat", (Document("gold"),), ("yes",))
    (filled,) = retrieve([record], Corpus(passages), 0, distractors=2, shuffle=False)
    assert [d.id for d in filled.documents[1:]] == ["300", "301"]


def test_terms_do_not_change_without_the_index_version() -> None:
    texts = ["The U.S. had 1,000 C++ jobs in 1990-2000 (+5%).", "東京都は日本の首都", "Ünïted é $5 -5 10²", "don't"]
    assert (VERSION, text_hash(json.dumps([terms(text) for text in texts]))) == (
        2,
        "sha256:718bc1c30e112403f0a108418773ff5530c781074d9aeda72a12ba5bb1941065",
    )
