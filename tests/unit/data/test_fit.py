from __future__ import annotations

from dataclasses import replace
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfaug.data.fit import SHORTEST_PIECE, fit_documents, fit_ids, fit_record
from selfaug.data.prompts import Renderer
from selfaug.data.record import Document, Record
from selfaug.data.tokens import record_tokens
from tests.unit.data.chat import FAMILIES, byte_level, sentencepiece_like, tokenizer_of

PLAIN = ("<s>", "</s>", None)
SENTENCE = "Once upon a time there was a little dog named Lily who liked to play in the park. "


def record_of(lengths: list[int], scores: list[float | None] | None = None, answer: str = "In Paris") -> Record:
    """A record whose documents have so many words; each document's words are its own."""
    words = SENTENCE.split()
    documents = tuple(
        Document(
            f"doc{i}. " + " ".join(words[j % len(words)] for j in range(n)), score=(scores or [None] * len(lengths))[i]
        )
        for i, n in enumerate(lengths)
    )
    return Record("Where is it?", documents, (answer,))


def tokens(record: Record, tokenizer, documents=None) -> int:
    prompt, response = record_tokens(Renderer.for_tokenizer(tokenizer), tokenizer, record, documents)
    return len(prompt) + len(response)


def fit(record: Record, tokenizer, max_length: int | None):
    return fit_record(record, Renderer.for_tokenizer(tokenizer), tokenizer, max_length)


def test_what_fits_is_whole():
    tokenizer, record = byte_level(*PLAIN), record_of([20, 30])
    size = tokens(record, tokenizer)
    for limit in (size, size + 1, None):
        result = fit(record, tokenizer, limit)
        assert (result.kept_documents, result.dropped_documents, result.shortened) == (record.documents, (), False)
        assert len(result.input_ids) == result.whole_tokens == size
    below = fit(record, tokenizer, size - 1)
    assert below.shortened
    assert below.dropped_documents == ()
    assert len(below.input_ids) <= size - 1
    assert below.whole_tokens == size


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (None, ["doc0", "doc1"]),
        ([0.1, 0.3, 0.2], ["doc1", "doc2"]),
        ([0.1, None, 0.2], ["doc0", "doc1"]),
        ([0.5, 0.5, 0.5], ["doc0", "doc1"]),
        ([-1.0, -2.0, 3.0], ["doc0", "doc2"]),
    ],
)
def test_the_least_relevant_documents_go_and_the_order_stays(scores, expected):
    tokenizer, record = byte_level(*PLAIN), record_of([30, 30, 30], scores)
    two = tokens(record, tokenizer, [d for d in record.documents if d.text[:4] in expected])
    result = fit(record, tokenizer, two)
    assert [document.text[:4] for document in result.kept_documents] == expected
    assert not result.shortened
    assert len(result.dropped_documents) == 1
    assert len(result.input_ids) == two


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_marks_of_gold_documents_decide_only_where_they_are_asked_for(data):
    tokenizer, count = byte_level(*PLAIN), data.draw(st.integers(2, 4))
    scores = data.draw(st.none() | st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=count, max_size=count))
    marks = data.draw(st.lists(st.sampled_from([True, False, None]), min_size=count, max_size=count))
    bare = record_of([20] * count, scores)
    marked = replace(bare, documents=tuple(replace(d, gold=m) for d, m in zip(bare.documents, marks, strict=True)))
    limit = data.draw(st.integers(tokens(bare, tokenizer, bare.documents[:1]), tokens(bare, tokenizer)))

    def kept(record: Record, truncate: str) -> list[str]:
        def row(documents):
            prompt, response = record_tokens(Renderer.for_tokenizer(tokenizer), tokenizer, record, documents)
            return prompt + response, [-100] * len(prompt) + response

        return [
            d.text for d in fit_documents(record.documents, row, tokenizer, limit, truncate=truncate).kept_documents
        ]

    assert kept(marked, "by_score") == kept(bare, "by_score") == kept(bare, "by_gold")
    names = {text[:4] for text in kept(marked, "by_gold")}
    gold = {d.text[:4] for d, mark in zip(bare.documents, marks, strict=True) if mark}
    wrong = {d.text[:4] for d, mark in zip(bare.documents, marks, strict=True) if mark is False}
    assert gold <= names or not names - gold
    assert not names & wrong or {d.text[:4] for d in bare.documents} - names <= wrong


@pytest.mark.parametrize("kind", [byte_level, sentencepiece_like])
def test_the_last_one_that_does_not_fit_keeps_its_beginning(kind):
    tokenizer, record = kind(*PLAIN), record_of([30, 60])
    one = tokens(record, tokenizer, record.documents[:1])
    offsets = tokenizer(record.documents[1].text, add_special_tokens=False, return_offsets_mapping=True)[
        "offset_mapping"
    ]
    pieces = []
    for limit in range(one + 40, one + 60):
        result = fit(record, tokenizer, limit)
        assert result.shortened
        assert result.kept_documents[0] == record.documents[0]
        pieces.append(result.kept_documents[1].text)
        assert record.documents[1].text.startswith(pieces[-1])
        assert len(pieces[-1]) in [end for _, end in offsets]
        # Nearly full: only what one more token would take may be missing.
        assert limit - 4 <= len(result.input_ids) <= limit
    assert len(set(pieces)) > 10
    assert pieces == sorted(pieces, key=len)


def test_a_piece_of_a_few_words_is_not_kept():
    tokenizer, record = byte_level(*PLAIN), record_of([30, 60])
    one = tokens(record, tokenizer, record.documents[:1])
    result = fit(record, tokenizer, one + SHORTEST_PIECE - 1)
    assert result.kept_documents == record.documents[:1]
    assert result.dropped_documents == record.documents[1:]
    assert not result.shortened


def test_what_cannot_fit_is_none():
    tokenizer = byte_level(*PLAIN)
    record = record_of([40], answer=SENTENCE * 3)
    bare = tokens(record, tokenizer, [])
    assert fit(record, tokenizer, bare) is None, "a record with documents is not trained without any"
    assert fit(record, tokenizer, bare + SHORTEST_PIECE * 3) is not None
    assert fit(record, tokenizer, 5) is None
    without = Record("Where is it?", (), ("In Paris",))
    assert fit(without, tokenizer, 5) is None
    assert fit(without, tokenizer, 500).kept_documents == ()


@pytest.mark.parametrize("family", ["chatml", "mistral"])
@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    scored=st.booleans(),
    limits=st.tuples(st.integers(40, 420), st.integers(40, 420)),
    data=st.data(),
)
def test_answers_are_never_cut_and_more_room_keeps_more(family, lengths, scored, limits, data):
    tokenizer = tokenizer_of(FAMILIES[family])
    scores = data.draw(st.lists(st.floats(-1, 1), min_size=len(lengths), max_size=len(lengths))) if scored else None
    record = record_of(lengths, scores)
    small, large = (fit(record, tokenizer, limit) for limit in sorted(limits))
    for result, limit in ((small, min(limits)), (large, max(limits))):
        if result is None:
            continue
        assert len(result.input_ids) <= limit
        response = [label for label in result.labels if label != -100]
        assert "In Paris" in tokenizer.decode(response)
        assert response[-1] == tokenizer.eos_token_id
        assert result.labels[-len(response) :] == response == result.input_ids[-len(response) :]
        assert len(result.kept_documents) + len(result.dropped_documents) == len(lengths)
        # What is kept is what stands in the prompt.
        prompt, again = record_tokens(Renderer.for_tokenizer(tokenizer), tokenizer, record, result.kept_documents)
        assert result.input_ids == prompt + again
    if small is None:
        return
    assert large is not None
    for kept in small.kept_documents:
        assert any(other.text.startswith(kept.text) for other in large.kept_documents)


def test_text_of_any_kind_is_cut_into_valid_text():
    tokenizer = byte_level(*PLAIN)
    record = Record("Who?", (Document("日本語の文章 é😀 " * 40),), ("I",))
    size = tokens(record, tokenizer)
    seen = set()
    for limit in range(size - 60, size):
        result = fit(record, tokenizer, limit)
        piece = result.kept_documents[0].text
        seen.add(piece)
        assert record.documents[0].text.startswith(piece)
        assert "\ufffd" not in tokenizer.decode(result.input_ids)
    assert len(seen) > 10


def test_a_cut_never_parts_a_token():
    tokenizer = byte_level(*PLAIN)
    text = "stoodanswerdocument" * 30
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ends = {end for _, end in offsets}
    assert len(ends) < len(text) * 0.6, "tokens must have several letters, or any place would do"
    record = Record("Who?", (Document(text),), ("I",))
    size = tokens(record, tokenizer)
    for limit in range(size - 40, size):
        assert len(fit(record, tokenizer, limit).kept_documents[0].text) in ends


def test_few_tokenisations():
    tokenizer, record = byte_level(*PLAIN), record_of([200] * 30)
    renderer = Renderer.for_tokenizer(tokenizer)
    with mock.patch("selfaug.data.fit.record_tokens", wraps=record_tokens) as calls:
        result = fit_record(record, renderer, tokenizer, 1500)
    assert result.shortened
    assert 3 < calls.call_count <= 20


def test_a_tokenizer_that_grows_otherwise_is_searched_in_full():
    # Counted as if each token of the piece were three in the row: the estimate is far off.
    tokenizer, record = byte_level(*PLAIN), record_of([100])

    def tokens_of(documents):
        ids = tokenizer(documents[0].text)["input_ids"] * 3 if documents else []
        return ids, ids

    result = fit_documents(record.documents, tokens_of, tokenizer, 120)
    assert 120 - 3 * 2 < len(result.input_ids) <= 120


def test_tokenizers_without_offsets_cut_between_words():
    tokenizer, record = byte_level(*PLAIN), record_of([80])
    with mock.patch.object(type(tokenizer), "is_fast", False):
        result = fit(record, tokenizer, tokens(record, tokenizer) - 20)
    whole, piece = record.documents[0].text, result.kept_documents[0].text
    assert whole.startswith(piece + " ")


def test_fit_ids():
    ids, labels = [1, 2, 3, 4, 5, 6], [-100, -100, -100, -100, 5, 6]
    assert fit_ids(ids, labels, 6) == fit_ids(ids, labels, None) == (ids, labels)
    assert fit_ids(ids, labels, 5) is None
    assert fit_ids(ids, labels, 5, cut_prompt_left=True) == (ids[1:], labels[1:])
    assert fit_ids(ids, labels, 3, cut_prompt_left=True) == ([4, 5, 6], [-100, 5, 6])
    # The first response token must be predicted from something, and the response is never cut.
    assert fit_ids(ids, labels, 2, cut_prompt_left=True) is None
    assert fit_ids(ids, labels, 5, cut_prompt_left=True, keep_first=1) == ([1, 3, 4, 5, 6], [-100, -100, -100, 5, 6])
    assert fit_ids(ids, labels, 3, cut_prompt_left=True, keep_first=1) == ([1, 5, 6], [-100, 5, 6])
    assert fit_ids(ids, labels, 2, cut_prompt_left=True, keep_first=1) is None
    assert fit_ids(ids, ids, 5, cut_prompt_left=True) is None
    assert fit_ids(ids, [-100] * 6, 5, cut_prompt_left=True) is None
