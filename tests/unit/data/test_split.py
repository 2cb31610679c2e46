"""Is nothing shared between what is trained on and what is held out, and is a leak seen?"""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfaug.common.errors import ConfigError, DataError
from selfaug.data.leaks import check_leaks
from selfaug.data.record import Conversation, Document, Record
from selfaug.data.split import Example, split_by_document


def record(question: str, *texts: str) -> Record:
    return Record(question, tuple(Document(text) for text in texts), ("a",))


def plain(text: str) -> str:
    """Case, punctuation and spacing taken away, without the package's own normalisation."""
    return re.sub(r"[^a-z0-9]+", "", text.lower())


def texts(example: Example) -> set[str]:
    assert isinstance(example, Record)
    return {plain(document.text) for document in example.documents} | {"?" + plain(example.question)}


# Few texts, so that examples share many; each in several spellings.
spelling = st.tuples(st.integers(0, 25), st.sampled_from(["passage {}", "Passage, {}!", " PASSAGE  {}"])).map(
    lambda t: t[1].format(t[0])
)
records = st.builds(
    lambda question, documents: record(f"question {question}", *documents),
    st.integers(0, 30),
    st.lists(spelling, min_size=1, max_size=3),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(records, min_size=2, max_size=40), st.floats(0.05, 0.6), st.integers(0, 3))
def test_no_text_is_on_both_sides(examples: list[Record], fraction: float, seed: int) -> None:
    try:
        split = split_by_document(examples, fraction, seed)
    except DataError:
        return
    assert split.train
    assert split.held_out
    assert [e for e in examples if e in split.train or e in split.held_out] == examples
    assert len(split.train) + len(split.held_out) == len(examples)
    train = set().union(*(texts(e) for e in split.train))
    held_out = set().union(*(texts(e) for e in split.held_out))
    assert not train & held_out
    assert not check_leaks(split.train, split.held_out)


@given(st.lists(records, min_size=8, max_size=30, unique_by=str), st.randoms())
@settings(max_examples=60, deadline=None)
def test_the_split_depends_on_seed_and_texts_alone(examples: list[Record], random: Any) -> None:
    shuffled = list(examples)
    random.shuffle(shuffled)
    try:
        one, other = split_by_document(examples, 0.3, 5), split_by_document(shuffled, 0.3, 5)
    except DataError:
        return
    assert set(one.held_out) == set(other.held_out)


def test_another_seed_draws_another_split_of_the_asked_size() -> None:
    examples = [record(f"q{i}", f"text {i // 2}") for i in range(200)]
    splits = [split_by_document(examples, 0.1, seed) for seed in range(3)]
    assert [len(split.held_out) for split in splits] == [20, 20, 20]
    assert splits[0].groups == 100
    assert len({str(split.held_out) for split in splits}) == 3
    # Drawn from everywhere, not from the end.
    assert {examples.index(e) < 100 for e in splits[0].held_out} == {True, False}


def test_examples_that_share_a_document_through_others_stay_together() -> None:
    chain = [record(f"q{i}", f"text {i}", f"text {i + 1}") for i in range(5)]
    alone = [record(f"other {i}", f"alone {i}") for i in range(5)]
    split = split_by_document([*chain, *alone], 0.2)
    assert len(split.held_out) == 2
    assert set(split.held_out) < set(alone)


def test_a_question_asked_of_every_document_does_not_tie_them_together() -> None:
    def asked(answer: int, text: int) -> Record:
        return Record("What is this about?", (Document(f"text {text}"),), (f"answer {answer}",))

    split = split_by_document([asked(i, i) for i in range(10)], 0.2)
    assert (split.groups, len(split.held_out)) == (10, 2)
    assert not check_leaks(split.train, split.held_out)
    # With the same answer it is the same example again, whatever the document.
    assert split_by_document([asked(i // 2, i) for i in range(10)], 0.2).groups == 5
    assert check_leaks([asked(0, 0)], [asked(0, 1)]).questions == ["What is this about? → answer 0"]


def test_what_hangs_together_cannot_be_split() -> None:
    examples = [record(f"q{i}", "the one document") for i in range(10)]
    with pytest.raises(DataError, match=r"form 1 groups .* the largest of 10") as caught:
        split_by_document(examples, 0.2)
    assert "--held_out 0" in caught.value.hint
    with pytest.raises(DataError):
        split_by_document([record("q", "t")], 0.5)
    with pytest.raises(DataError):
        split_by_document([], 0.5)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan"), True, "0.1"])
def test_a_fraction_that_is_none_is_refused(fraction: Any) -> None:
    with pytest.raises(ConfigError, match="held_out="):
        split_by_document([record("q", "t"), record("r", "u")], fraction)


def test_conversations_and_rows_are_split_by_what_they_ask() -> None:
    def talk(text: str) -> Conversation:
        return Conversation(({"role": "user", "content": text}, {"role": "assistant", "content": "ok"}))

    examples: list[Example] = [talk(f"hello {i // 2}") for i in range(20)]
    examples += [{"prompt": f"say {i // 2}", "completion": str(i)} for i in range(20)]
    examples += [{"input_ids": [i // 2]} for i in range(20)]
    split = split_by_document(examples, 0.5)
    assert split.groups == 30
    assert len(split.held_out) == 30
    assert not check_leaks(split.train, split.held_out)
    assert check_leaks(examples[:1], examples[1:2]).questions == ["hello 0"]


LONG = " ".join(f"word{i}" for i in range(60))


@pytest.mark.parametrize(
    ("planted", "kind"),
    [
        (record("new", "Text 3"), "documents"),
        (record("new", "new", "TEXT  3."), "documents"),
        (record("q3?", "new"), "questions"),
        (record("new", LONG.replace("word30", "changed")), "near_duplicates"),
        (record("new", "Preface. " + LONG), "near_duplicates"),
        (record("new", " ".join(LONG.split()[10:40])), "near_duplicates"),
    ],
)
def test_a_planted_leak_is_found(planted: Record, kind: str) -> None:
    train = [*(record(f"q{i}", f"text {i}") for i in range(10)), record("long", LONG)]
    clean = [record("fresh", "fresh text of a few words"), record("half", " ".join(LONG.split()[:10]) + " other" * 40)]
    assert not check_leaks(train, clean)
    leaks = check_leaks(train, [*clean, planted])
    assert leaks
    assert {name for name in ("documents", "questions", "near_duplicates") if getattr(leaks, name)} == {kind}
    assert leaks.lines()[0].startswith("leak: 1 ")
    assert sum(part["count"] for part in leaks.as_dict().values()) == 1
