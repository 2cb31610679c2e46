"""Does a question get the passages that BM25's formula ranks first, and are distractors distractors?"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfaug.common.errors import ConfigError, DataError
from selfaug.data.corpus import Corpus
from selfaug.data.record import Document, Record
from selfaug.data.retrieve import answers_found, retrieve
from selfaug.data.words import contains

PASSAGES = (
    Document("the cat sat on the mat", "cat", "p0"),
    Document("a dog barked at the cat in the garden", "dog", "p1"),
    Document("rain falls in may and wets the garden", "rain", "p2"),
    Document("snow lies in january", "snow", "p3"),
    Document("the may fly lives a day in may", "fly", "p4"),
)
CORPUS = Corpus(PASSAGES)


def bm25(question: str, passages: tuple[Document, ...], *others: Document) -> list[float]:
    """Lucene's BM25 by its formula: idf · tf / (tf + k1 (1 − b + b · length / mean length)); also of texts outside."""
    texts = [f"{p.title or ''} {p.text}".lower().split() for p in passages]
    mean = sum(map(len, texts)) / len(texts)
    scores = []
    for text in [*texts, *(f"{p.title or ''} {p.text}".lower().split() for p in others)]:
        score = 0.0
        for word in question.lower().split():
            df = sum(word in other for other in texts)
            tf = text.count(word)
            idf = math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
            score += idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * len(text) / mean))
        scores.append(score)
    return scores


vocabulary = st.sampled_from(["red", "green", "blue", "cat", "dog", "fish", "sun", "moon"])
sentences = st.lists(vocabulary, min_size=1, max_size=8).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(sentences, min_size=1, max_size=8), sentences, st.integers(1, 4))
def test_search_ranks_by_the_formula(texts: list[str], question: str, k: int) -> None:
    passages = tuple(Document(text, id=str(i)) for i, text in enumerate(texts))
    expected = bm25(question, passages)
    found = Corpus(passages).search(question, k)
    assert len(found) == min(k, sum(score > 0 for score in expected))
    for document in found:
        assert document.score == pytest.approx(expected[int(document.id or -1)], rel=1e-5)
    scores = sorted(expected, reverse=True)
    assert [d.score for d in found] == pytest.approx(scores[: len(found)], rel=1e-5)


def test_ties_keep_the_order_of_the_corpus_and_strangers_find_nothing() -> None:
    # Every third passage scores higher; within each of the two scores the corpus's order must hold.
    texts = ["same same", "same else", "same else"] * 200
    corpus = Corpus(tuple(Document(text, id=str(i)) for i, text in enumerate(texts)))
    expected = [*range(0, 600, 3), *(i for i in range(600) if i % 3)]
    assert [d.id for d in corpus.search("same", 500)] == [str(i) for i in expected[:500]]
    assert corpus.search("unknown", 3) == []
    assert corpus.search("?!", 3) == []
    assert corpus.search("same", 0) == []


def test_scripts_without_spaces_are_searched_by_character() -> None:
    corpus = Corpus((Document("東京は日本の首都です"), Document("パリはフランスの首都です"), Document("方丈記")))
    assert [d.text for d in corpus.search("日本の首都は?", 1)] == ["東京は日本の首都です"]


def test_records_without_documents_get_the_best_passages() -> None:
    record = Record("when does rain fall in the garden", (), ("may",), "r")
    (filled,) = retrieve([record], CORPUS, 2)
    expected = bm25(record.question, PASSAGES)
    best = sorted(range(5), key=lambda i: -expected[i])[:2]
    assert [d.id for d in filled.documents] == [f"p{i}" for i in best]
    assert filled.documents[0].score == pytest.approx(expected[best[0]], rel=1e-5)
    assert (filled.question, filled.answers, filled.id) == (record.question, record.answers, record.id)
    assert answers_found(filled)
    assert not answers_found(record)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(sentences, min_size=3, max_size=12),
    st.lists(sentences, max_size=2),
    sentences,
    vocabulary,
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_what_is_retrieved(
    texts: list[str], gold: list[str], question: str, answer: str, k: int, distractors: int
) -> None:
    if k + distractors == 0:
        return
    corpus = Corpus(tuple(Document(text) for text in texts))
    record = Record(question, tuple(Document(text, id="gold") for text in gold), (answer,))
    (filled,) = retrieve([record], corpus, k, distractors=distractors)
    assert retrieve([record], corpus, k, distractors=distractors) == [filled]
    kept = [d for d in filled.documents if d.id == "gold"]
    added = [d for d in filled.documents if d.id != "gold"]
    assert sorted(d.text for d in kept) == sorted(gold)
    assert len({d.text for d in added}) == len(added)
    assert not {d.text for d in added} & set(gold)
    best = [] if gold else [d.text for d in corpus.search(question, len(texts))]
    best = list(dict.fromkeys(best))[:k]
    wrong = [d for d in added if d.text not in best]
    assert set(best) <= {d.text for d in added}
    assert len(wrong) <= distractors
    assert all(answer not in d.text.split() for d in wrong)
    # As many as there are: no other passage that shares a word could have been a distractor.
    possible = {
        text
        for text in texts
        if set(text.split()) & set(question.split()) and answer not in text.split() and text not in (*best, *gold)
    }
    assert len(wrong) == min(distractors, len(possible))
    if added:
        # What was there before is scored as a retriever would have; distractors alone are known to be wrong.
        for document in filled.documents:
            assert document.score == pytest.approx(bm25(question, tuple(corpus.passages), document)[-1], rel=1e-5)
        assert {d.text for d in filled.documents if d.gold is False} == {d.text for d in wrong}
        assert all(d.gold is None for d in kept)


def test_given_documents_get_the_scores_of_this_corpus_and_keep_their_marks() -> None:
    given_documents = (replace(PASSAGES[1], score=0.1, gold=False), Document("no such word", score=0.9, gold=True))
    (filled,) = retrieve([Record("cat", given_documents, ("zebra",))], CORPUS, 0, distractors=1, shuffle=False)
    in_corpus, foreign, distractor = filled.documents
    assert in_corpus.score == pytest.approx(CORPUS.search("cat", 2)[1].score)
    assert (foreign.score, foreign.gold, in_corpus.gold, distractor.gold) == (0.0, True, False, False)
    (alone,) = retrieve([Record("zebra", given_documents, ("zebra",))], CORPUS, 0, distractors=1, shuffle=False)
    assert alone.documents == given_documents  # nothing was retrieved, so no score was replaced


def test_the_right_document_is_not_always_first_and_order_follows_the_seed() -> None:
    records = [Record(f"cat {i}", (Document("gold"),), ("zebra",)) for i in range(20)]
    places = [
        [
            next(j for j, d in enumerate(r.documents) if d.text == "gold")
            for r in retrieve(records, CORPUS, 0, distractors=1, seed=seed)
        ]
        for seed in (0, 0, 1)
    ]
    assert places[0] == places[1] != places[2]
    assert 0 < sum(places[0]) < 20


def test_excluded_texts_are_never_given() -> None:
    record = Record("cat", (), ("zebra",))
    before = retrieve([record], CORPUS, 5)[0].documents
    assert len(before) == 2
    after = retrieve([record], CORPUS, 5, exclude={"the cat sat on the mat"})[0].documents
    assert [d.id for d in after] == [d.id for d in before if d.id != "p0"]


def test_numbers_that_retrieve_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="top_k=-1"):
        retrieve([], CORPUS, -1)
    with pytest.raises(ConfigError, match="retrieve nothing"):
        retrieve([], CORPUS, 0)


@pytest.mark.parametrize(
    ("passage", "answer", "expected"),
    [
        ("He was born in May, 1901.", "may 1901", True),
        ("He was born in Mayfair.", "May", False),
        ("The U.S. won", "U.S.", True),
        ("Ünïted", "ÜNÏTED", True),
        ("ﬁne", "fine", True),
        ("東京は首都", "東京", True),
        ("a b", "b a", False),
    ],
)
def test_contains(passage: str, answer: str, expected: bool) -> None:
    assert contains(passage, answer) is expected


def test_corpora_in_every_spelling(tmp_path: Path) -> None:
    (tmp_path / "flash.jsonl").write_text(json.dumps({"id": "0", "contents": '"Rain"\nIt falls.'}) + "\n", "utf-8")
    (tmp_path / "beir.jsonl").write_text(json.dumps({"_id": "0", "title": "Rain", "text": "It falls."}) + "\n", "utf-8")
    (tmp_path / "dpr.tsv").write_text('id\ttext\ttitle\n0\t"It falls."\tRain\n', "utf-8")
    for name in ("flash.jsonl", "beir.jsonl", "dpr.tsv"):
        assert list(Corpus.load(tmp_path / name).passages) == [Document("It falls.", "Rain", "0")]
    (tmp_path / "note.md").write_text("# One\n\nshort\n\n" + "Long one. " * 150 + "\n\n \nlast", "utf-8")
    passages = Corpus.load(tmp_path / "note.md").passages
    assert passages[0].text.startswith("# One\n\nshort\n\nLong one. Long one.")
    assert all(len(p.text.split()) <= 200 for p in passages)
    assert " ".join(p.text for p in passages).split() == (tmp_path / "note.md").read_text("utf-8").split()
    assert [p.id for p in passages] == [f"note.md#{i + 1}" for i in range(len(passages))]
    assert passages[0].title == "note"
    assert len(Corpus.load(tmp_path).passages) == 3 + len(passages)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.jsonl", b'{"id": 1}\n', r"c\.jsonl, line 1, field 'text'"),
        ("c.jsonl", b"{\n", r"c\.jsonl, line 1: expected one JSON object"),
        ("c.tsv", b"a\tb\tc\td\n", r"3 cells \(id, text, title\)"),
        ("c.txt", b"\xff", "UTF-8"),
        ("c.txt", b"\n\n", "no passage"),
        ("c.jsonl", b'{"text": "?!"}\n', "holds no word"),
    ],
)
def test_a_corpus_that_cannot_be_read_says_why(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        Corpus.load(tmp_path / name).search("a", 1)
    with pytest.raises(DataError, match="no such file"):
        Corpus.load(tmp_path / "missing.jsonl")
