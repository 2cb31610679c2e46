"""What two data sets share is counted as what it is: rows, distinct documents, questions, titles."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from selfaug.data.leaks import check_leaks
from selfaug.data.record import Conversation, Document, Record
from selfaug.data.split import Example, plain, split_by_document, titles_of


def bare(text: str) -> str:
    """Case, punctuation and spacing taken away, without the package's own function."""
    return re.sub(r"[^a-z0-9]+", "", text.lower())


spelling = st.tuples(st.integers(0, 12), st.sampled_from(["passage {}", "Passage, {}!", " PASSAGE  {}"])).map(
    lambda t: t[1].format(t[0])
)
records = st.builds(
    lambda question, answer, documents: Record(question, tuple(documents), (answer,)),
    st.sampled_from(["Who?", "who", "What is 1?", "Why?"]),
    st.sampled_from(["Ada", "ada.", "Bob"]),
    st.lists(
        st.builds(Document, spelling, st.sampled_from([None, "Rome", "ROME", "Oslo", "Lima"])), min_size=1, max_size=3
    ),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(records, max_size=12), st.lists(records, max_size=12))
def test_counts_agree_with_a_comparison_of_every_pair(train: list[Record], held_out: list[Record]) -> None:
    def same_question(a: Record, b: Record) -> bool:
        return bare(a.question) == bare(b.question)

    def same_answer(a: Record, b: Record) -> bool:
        return bare(a.answers[0]) == bare(b.answers[0])

    def documents(a: Record) -> set[str]:
        return {bare(document.text) for document in a.documents}

    def several(a: Record) -> list[str]:
        return sorted(bare(document.text) for document in a.documents)

    found = check_leaks(train, held_out).counts()
    trained = {text for one in train for text in documents(one)}
    letters = {document.text for one in train for document in one.documents}
    shared = {text for one in held_out for text in documents(one)} & trained
    exact = {bare(d.text) for one in held_out for d in one.documents if d.text in letters}
    rows = [one for one in held_out if documents(one) & trained]
    assert found["shared_documents"] == {"count": len(shared), "rows": len(rows), "exact": len(exact)}

    asked = [one for one in held_out if any(same_question(one, t) and same_answer(one, t) for t in train)]
    questions = {(bare(one.question), bare(one.answers[0])) for one in asked}
    assert found["shared_questions"] == {"count": len(questions), "rows": len(asked)}
    other = [one for one in held_out if one not in asked and any(same_question(one, t) for t in train)]
    assert found["questions_with_another_answer"] == {
        "count": len({bare(one.question) for one in other}), "rows": len(other),
    }  # fmt: skip

    whole = [
        one
        for one in held_out
        if any(same_question(one, t) and same_answer(one, t) and several(one) == several(t) for t in train)
    ]
    same = [one for one in held_out if any(replace_titles(one) == replace_titles(t) for t in train)]
    assert found["shared_rows"] == {"count": len(whole), "rows": len(whole), "exact": len(same)}

    trained_titles = {bare(title) for one in train for title in titles_of(one)}
    titled = [one for one in held_out if {bare(title) for title in titles_of(one)} & trained_titles]
    titles = {bare(title) for one in titled for title in titles_of(one)} & trained_titles
    assert found["shared_titles"] == {"count": len(titles), "rows": len(titled)}
    assert found["near_duplicate_documents"] == {"count": 0, "rows": 0}

    places = check_leaks(train, held_out).training_places
    held_texts = {text for one in held_out for text in documents(one)}
    assert places == {
        i for i, t in enumerate(train)
        if documents(t) & held_texts or any(same_question(t, one) and same_answer(t, one) for one in held_out)
    }  # fmt: skip
    left = [one for i, one in enumerate(train) if i not in places]
    assert not check_leaks(left, held_out)


def replace_titles(one: Record) -> Record:
    return replace(one, documents=tuple(Document(document.text) for document in one.documents))


WORDS = [f"word{i}" for i in range(80)]


def test_one_document_that_is_near_to_many_is_one_document() -> None:
    def near(i: int) -> Record:
        return Record(f"q{i}", (Document(" ".join([*WORDS, f"end{i}"])),), ("a",))

    train = [near(i) for i in range(1000)]
    held_out = [Record("h", (Document(" ".join(WORDS)),), ("a",)), Record("g", (Document(" ".join(WORDS)),), ("b",))]
    leaks = check_leaks(train, held_out)
    assert leaks.counts()["near_duplicate_documents"] == {"count": 1, "rows": 2}
    assert leaks.lines() == ["leak: 1 distinct document (in 2 rows of 2) are nearly equal to one in the training data"]
    assert leaks.training_places == set(range(1000))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 30), max_size=40), min_size=1, max_size=6),
    st.lists(st.lists(st.integers(0, 30), max_size=40), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30), st.integers(1, 40)), max_size=4),
)
def test_near_duplicates_are_those_that_share_four_fifths_of_the_shorter_ones_runs(
    train: list[list[int]], held_out: list[list[int]], copied: list[tuple[int, int, int]]
) -> None:
    for place, start, length in copied:  # so that some do share runs
        source = held_out[place % len(held_out)]
        train[place % len(train)] = [*source[start : start + length], 99]

    def text(numbers: list[int]) -> str:
        return " ".join(f"w{number}" for number in [*numbers, 7])

    def runs(numbers: list[int]) -> set[tuple[int, ...]]:
        whole = [*numbers, 7]
        return {tuple(whole[i : i + 8]) for i in range(max(1, len(whole) - 7))}

    def record(numbers: list[int], question: str) -> Record:
        return Record(question, (Document(text(numbers)),), ("a",))

    expected = {
        text(one)
        for one in held_out
        if one not in train and any(len(runs(one) & runs(t)) >= 0.8 * min(len(runs(one)), len(runs(t))) for t in train)
    }
    leaks = check_leaks([record(t, "t") for t in train], [record(one, "h") for one in held_out])
    assert {pair[0] for pair in leaks.near_duplicates} == expected


def test_many_rows_of_few_documents_are_counted_as_few_documents() -> None:
    documents = tuple(Document(f"passage {i} of five", f"title {i}") for i in range(5))
    train: list[Example] = [Record(f"question {i}?", documents, (str(i),)) for i in range(20_000)]
    held_out: list[Example] = [Record(f"held out {i}?", documents, (str(i),)) for i in range(500)]
    leaks = check_leaks(train, held_out)
    assert leaks.counts()["shared_documents"] == {"count": 5, "rows": 500, "exact": 5}
    assert leaks.lines()[0] == (
        "leak: 5 distinct documents (in 500 rows of 500) are also in the training data (5 letter by letter)"
    )
    assert leaks.counts()["shared_rows"] == {"count": 0, "rows": 0, "exact": 0}


def test_rows_that_are_no_records_are_compared_too() -> None:
    def talk(question: str, answer: str) -> Conversation:
        return Conversation(({"role": "user", "content": question}, {"role": "assistant", "content": answer}))

    train: list[Any] = [talk("Hello?", "Hi"), {"prompt": "say a", "completion": "b"}, talk("Bye", "now")]
    held_out: list[Any] = [talk("hello", "Hi"), {"prompt": "say a", "completion": "b"}, talk("Hello?", "No")]
    found = check_leaks(train, held_out).counts()
    assert found["shared_rows"] == {"count": 2, "rows": 2, "exact": 1}
    assert found["shared_questions"] == {"count": 2, "rows": 3}


@settings(max_examples=150, deadline=None)
@given(st.lists(records, min_size=2, max_size=40), st.floats(0.05, 0.6), st.integers(0, 3))
def test_no_title_is_on_both_sides_of_a_split_by_title(examples: list[Record], fraction: float, seed: int) -> None:
    from selfaug.common.errors import DataError

    keys = [titles_of(example) for example in examples]
    try:
        split = split_by_document(examples, fraction, seed, keys)
    except DataError as error:
        assert "a value of group_by" in error.message  # noqa: PT017
        return
    train, held_out = (
        {bare(title) for example in part for title in titles_of(example)} for part in (split.train, split.held_out)
    )
    assert not train & held_out
    leaks = check_leaks(split.train, split.held_out)
    assert not leaks
    assert not leaks.titles
    assert len(split.train) + len(split.held_out) == len(examples)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=20, max_size=40), st.floats(0.1, 0.5), st.integers(0, 3))
def test_the_size_of_a_split_by_title_is_near_what_was_asked(sizes: list[int], fraction: float, seed: int) -> None:
    rows = [(f"title {group}", f"{group} {i}") for group, size in enumerate(sizes) for i in range(size)]
    examples = [Record(f"q {text}", (Document(f"text {text}", title),), (text,)) for title, text in rows]
    split = split_by_document(examples, fraction, seed, [titles_of(example) for example in examples])
    assert split.groups == len(sizes)
    # Whole groups fill the target until the smallest that is left would exceed it.
    assert fraction * len(rows) - max(sizes) <= len(split.held_out) <= fraction * len(rows) + 0.5


def test_what_makes_two_texts_one() -> None:
    assert plain("Don’t  PANIC, (really)!") == plain("don't panic really")
    assert plain("ＡＢ１") == plain("ab1")
    assert plain("北京。大") == plain("北京 大")
    assert plain("राम") != plain("रोम")
    assert plain("?!") != plain("!!")
