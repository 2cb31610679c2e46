"""With documents from a corpus, is still nothing on both sides, and does each question keep the passage it needs?"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfaug.common.errors import DataError
from selfaug.data.corpus import Corpus
from selfaug.data.preparation import Retrieval, prepare
from selfaug.data.record import Document, Record

words = st.sampled_from([f"w{i}" for i in range(12)])
sentences = st.lists(words, min_size=1, max_size=4).map(" ".join)
outcomes = {"prepared": 0, "both sides have documents of the corpus": 0}


@settings(max_examples=150, deadline=None)
@given(
    st.lists(sentences, min_size=4, max_size=20, unique=True),
    st.lists(st.tuples(sentences, st.booleans()), min_size=3, max_size=10),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(0, 3),
)
def test_no_passage_is_on_both_sides(
    texts: list[str], questions: list[tuple[str, bool]], top_k: int, distractors: int, seed: int
) -> None:
    corpus = Corpus(tuple(Document(text) for text in texts))
    records = [
        Record(question, (Document(f"own {i}"),) if own else (), (f"a{i}",))
        for i, (question, own) in enumerate(questions)
    ]
    retrieval = Retrieval(corpus, top_k, distractors)
    try:
        parts = prepare(records, held_out=0.3, seed=seed, retrieval=retrieval, on_bad_row="skip")
    except DataError:
        return
    outcomes["prepared"] += 1
    train, held_out = (
        {d.text for r in part if isinstance(r, Record) for d in r.documents} for part in (parts.train, parts.held_out)
    )
    assert not train & held_out
    outcomes["both sides have documents of the corpus"] += bool(train & set(texts)) and bool(held_out & set(texts))
    assert len(parts.train) + len(parts.held_out) + len(parts.without_documents) == len(records)
    assert parts.leaks is not None
    assert not parts.leaks.documents
    again = prepare(records, held_out=0.3, seed=seed, retrieval=retrieval, on_bad_row="skip")
    assert (again.train, again.held_out) == (parts.train, parts.held_out)


def test_the_cases_above_were_real() -> None:
    test_no_passage_is_on_both_sides()
    assert outcomes["prepared"] > 30
    assert outcomes["both sides have documents of the corpus"] > 30


def test_distractors_of_one_side_do_not_take_the_other_sides_answers() -> None:
    corpus = Corpus(tuple(Document(f"thing and word{i}") for i in range(40)))
    records = [Record(f"which thing has word{i}", (), (f"word{i}",)) for i in range(40)]
    parts = prepare(records, held_out=0.25, retrieval=Retrieval(corpus, 1, 3))
    # Every passage is the best one of some question: no distractor is free, and none is taken from another's answer.
    assert parts.with_answer == 40
    assert (len(parts.train), len(parts.held_out)) == (30, 10)


def test_questions_whose_best_passage_is_the_same_stay_together() -> None:
    corpus = Corpus(tuple(Document(f"word{i} other{i}") for i in range(10)))
    records = [Record(f"{kind}{i}?", (), ("x",)) for i in range(10) for kind in ("word", "other")]
    parts = prepare(records, held_out=0.2, retrieval=Retrieval(corpus, 1))
    assert parts.groups == 10
    assert len(parts.held_out) == 4


def test_without_a_split_everything_is_trained_on() -> None:
    records = [Record("q", (Document("d"),), ("a",))] * 3
    parts = prepare(records)
    assert (parts.train, parts.held_out, parts.leaks) == (records, [], None)
    assert parts.as_dict() == {"train": 3, "held_out": 0}


def test_a_corpus_that_does_not_speak_of_what_is_asked() -> None:
    records = [Record(f"q{i}", (), ("a",), f"r{i}") for i in range(4)]
    retrieval = Retrieval(Corpus((Document("nothing of it"),)), 2)
    with pytest.raises(DataError, match="no passage for the record 'r0: q0'"):
        prepare(records, retrieval=retrieval)
    with pytest.raises(DataError, match="no example is left for the training data"):
        prepare(records, retrieval=retrieval, on_bad_row="skip")
