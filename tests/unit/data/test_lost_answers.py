"""Is an answer whose evidence did not fit seen, counted, and treated as was asked?"""

from __future__ import annotations

import logging

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from selfaug.common.errors import ConfigError
from selfaug.data.encode import encode
from selfaug.data.lost_answers import SKIPPED
from selfaug.data.prompts import Renderer
from selfaug.data.record import Conversation, Document, Record
from selfaug.training.rows import items_table, prepare_rows
from tests.unit.data.chat import FAMILIES, tokenizer_of

TOKENIZER = tokenizer_of(FAMILIES["chatml"])
RENDERER = Renderer.for_tokenizer(TOKENIZER)
FILLER = "Once upon a time there was a little dog. " * 12
GONE = Record(
    "Where is it?", (Document(FILLER), Document(FILLER), Document("It stands in Rome.")), ("Rome",), id="gone"
)
THERE = Record("Where is it?", (Document("It stands in Paris."), Document(FILLER)), ("Paris",), id="there")
NEVER = Record("Where is it?", (Document(FILLER), Document(FILLER)), ("Oslo",), id="never")
ROWS = [GONE, THERE, NEVER]


def texts(row: dict) -> tuple[str, str]:
    """Prompt and response of a row."""
    prompt = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]
    response = [token for token in row["labels"] if token != -100]
    return TOKENIZER.decode(prompt), TOKENIZER.decode(response)


def test_keep_trains_it_and_warns_with_a_way_out():
    encoded = encode(ROWS, TOKENIZER, RENDERER, max_length=200)
    prompt, response = texts(encoded.rows[0])
    assert "Rome" not in prompt
    assert response.startswith("Rome")
    assert (encoded.report.kept, encoded.report.answers_lost, encoded.report.abstained) == (3, 1, 0)
    ((message, hint),) = encoded.report.warnings()
    assert message.startswith("1 of 3 rows (33 %) have their answer only in what was dropped to fit max_length=200")
    for way in ("--max_length", "--on_lost_answer skip", "abstain"):
        assert way in hint


def test_skip_leaves_it_out_by_name():
    encoded = encode(ROWS, TOKENIZER, RENDERER, max_length=200, on_lost_answer="skip")
    assert encoded.places == [1, 2]
    assert [(item.row, item.reason) for item in encoded.report.left_out] == [("row 1 (gone)", SKIPPED)]
    assert encoded.report.as_dict()["answers_lost"] == 1
    assert "1 rows have their answer only in what was dropped or cut off, and are left out" in encoded.report.lines()


def test_abstain_trains_the_abstention_over_the_same_documents():
    kept = encode([GONE], TOKENIZER, RENDERER, max_length=200)
    encoded = encode(ROWS, TOKENIZER, RENDERER, max_length=200, on_lost_answer="abstain")
    prompt, response = texts(encoded.rows[0])
    assert response == f"{RENDERER.abstention}<|im_end|>"
    assert texts(kept.rows[0])[0].startswith(prompt[:-100])
    assert [texts(row)[1] for row in encoded.rows[1:]] == ["Paris<|im_end|>", "Oslo<|im_end|>"]
    assert (encoded.report.answers_lost, encoded.report.abstained, encoded.report.kept) == (1, 1, 3)
    assert encoded.report.documents == 7
    assert encoded.report.as_dict()["on_lost_answer"] == "abstain"


def test_an_abstention_shorter_than_the_answer_does_not_bring_the_evidence_back():
    answer = "It stands in the middle of the old town of Rome where three rivers meet each other"
    record = Record("Where?", (Document("A dog sleeps in the house. " * 4), Document(f"{answer}.")), (answer,))
    length = len(encode([record], TOKENIZER, RENDERER, max_length=None).rows[0]["input_ids"]) - 6
    shorter = Record("Where?", record.documents, (), answerable=False)
    assert len(encode([shorter], TOKENIZER, RENDERER, max_length=None).rows[0]["input_ids"]) <= length
    row = encode([record], TOKENIZER, RENDERER, max_length=length, on_lost_answer="abstain").rows[0]
    prompt, response = texts(row)
    assert response == f"{RENDERER.abstention}<|im_end|>"
    assert answer not in prompt


def test_conversations_are_looked_at_too_and_have_no_abstention():
    messages = ({"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Rome."})
    item = Conversation(messages, GONE.documents)
    assert encode([item], TOKENIZER, RENDERER, max_length=200).report.answers_lost == 1
    for way in ("skip", "abstain"):
        encoded = encode([item], TOKENIZER, RENDERER, max_length=200, on_lost_answer=way)
        assert encoded.rows == []
        assert encoded.report.left_out[0].reason.startswith(SKIPPED)


def test_a_prompt_cut_at_its_left_is_looked_at_too():
    asked = f"It stands in Rome. {FILLER}{FILLER} Where is it?"
    item = Conversation(({"role": "user", "content": asked}, {"role": "assistant", "content": "Rome"}))
    options = {"max_length": 150, "cut_prompt_left": True}
    kept = encode([item], TOKENIZER, RENDERER, **options)
    assert "Rome" not in texts(kept.rows[0])[0]
    assert (kept.report.prompts_cut, kept.report.answers_lost) == (1, 1)
    assert encode([item], TOKENIZER, RENDERER, **options, on_lost_answer="skip").rows == []


def test_an_answer_in_a_title_or_under_another_name_is_there():
    titled = Record("Where?", (Document("It is there.", title="Rome"), Document(FILLER * 2 + "Rome")), ("Rome",))
    alias = Record(
        "Where?", (Document("In the eternal city."), Document(FILLER * 2 + "Rome")), ("Rome", "Eternal City")
    )
    report = encode([titled, alias], TOKENIZER, RENDERER, max_length=200).report
    assert report.shortened == 2
    assert report.answers_lost == 0


def test_an_unknown_word_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"on_lost_answer='skipp' is not known\. Did you mean 'skip'"):
        encode([], TOKENIZER, RENDERER, max_length=200, on_lost_answer="skipp")  # type: ignore[arg-type]
    from selfaug import SelfAugConfig

    with pytest.raises(ConfigError, match="on_lost_answer='no' is not known"):
        SelfAugConfig(output_dir="unused", on_lost_answer="no")
    assert SelfAugConfig(output_dir="unused").on_lost_answer == "keep"


@pytest.mark.parametrize(("way", "left"), [("keep", 3), ("skip", 2), ("abstain", 3)])
def test_the_trainers_rows_honour_it(way: str, left: int, caplog: pytest.LogCaptureFixture):
    common = {"tokenizer": TOKENIZER, "renderer": RENDERER, "max_length": 200, "cut_prompt_left": True, "name": "train"}
    with caplog.at_level(logging.WARNING):
        rows = prepare_rows(items_table(ROWS), tokenise=lambda table: table, on_lost_answer=way, **common)
    assert len(rows) == left
    assert ("Rome" in "".join(texts(row)[1] for row in rows)) is (way == "keep")
    assert ("--on_lost_answer" in caplog.text) is (way == "keep")
    stream = items_table(ROWS).to_iterable_dataset()
    streamed = prepare_rows(stream, tokenise=lambda table: table, on_lost_answer=way, **common)
    assert [row["input_ids"] for row in streamed] == [row["input_ids"] for row in rows]


@pytest.mark.parametrize(("way", "left"), [("keep", 2), ("skip", 1), ("abstain", 1)])
def test_rows_of_trls_formats_honour_it(way: str, left: int, caplog: pytest.LogCaptureFixture):
    def row(prompt: str, response: str) -> dict:
        first, second = (TOKENIZER(text, add_special_tokens=False)["input_ids"] for text in (prompt, response))
        return {"input_ids": first + second, "labels": [-100] * len(first) + second}

    table = Dataset.from_list(
        [{"prompt": "", **row(f"In Rome. {FILLER} Where?", " Rome")}, {"prompt": "", **row("Where? In Rome.", " Rome")}]
    )
    common = {"tokenizer": TOKENIZER, "renderer": None, "max_length": 100, "cut_prompt_left": True, "name": "train"}
    with caplog.at_level(logging.WARNING):
        rows = prepare_rows(table, tokenise=lambda rows: rows, on_lost_answer=way, **common)
    assert len(rows) == left
    assert "1 of 2 rows have their answer only in what was cut off" in caplog.text
    assert set(rows.column_names) == {"prompt", "input_ids", "labels"}


WORDS = st.sampled_from(
    ["Rome", "Paris", "Oslo", "a dog sleeps", "once upon a time", "in the park", "the tower stands"]
)
TEXTS = st.lists(WORDS, min_size=1, max_size=25).map(" ".join)


@st.composite
def records(draw: st.DrawFn) -> Record:
    answer = draw(st.sampled_from(["Rome", "Paris", "in the park", "the tower stands in the park"]))
    documents = [Document(text) for text in draw(st.lists(TEXTS, min_size=1, max_size=4))]
    at = draw(st.integers(0, len(documents)))
    documents.insert(at, Document(f"{draw(TEXTS)} {answer} {draw(TEXTS)}"))  # it stands in one of them at least
    if draw(st.booleans()):
        documents = [Document(d.text, score=draw(st.sampled_from([0.0, 1.0]))) for d in documents]
    return Record("Where is it?", tuple(documents), (answer,))


@settings(max_examples=60, deadline=None)
@given(st.lists(records(), min_size=1, max_size=3), st.integers(70, 220), st.sampled_from(["skip", "abstain"]))
def test_what_is_trained_stands_in_the_kept_documents_or_abstains(items, max_length, way):
    encoded = encode(items, TOKENIZER, RENDERER, max_length=max_length, on_lost_answer=way)
    assert len(encoded.rows) + len(encoded.report.left_out) == len(items)
    for place, row in zip(encoded.places, encoded.rows, strict=True):
        prompt, response = texts(row)
        assert len(row["input_ids"]) <= max_length
        answer = items[place].answers[0]
        documents = prompt.partition("Document 1")[2].partition("Where is it?")[0]
        assert documents
        if response == f"{RENDERER.abstention}<|im_end|>":
            assert way == "abstain"
            assert answer not in documents
        else:
            assert response == f"{answer}<|im_end|>"
            assert answer in documents
