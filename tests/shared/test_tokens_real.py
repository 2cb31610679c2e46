from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from selfaug.common.errors import DataError
from selfaug.data import stored
from selfaug.data.encode import aligned_tokens, encode
from selfaug.data.prompts import Renderer, render
from selfaug.data.read import read_rows
from selfaug.data.record import Conversation, Document, Record

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def tokenizer(stories260k):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(stories260k)


def mctest(shared: Path) -> list[Record]:
    """All questions of the 160 training stories' file; read here by hand, as the readers are tested elsewhere."""
    rows = list(csv.reader((shared / "data/mctest/mc160.train.tsv").open(), delimiter="\t", quoting=csv.QUOTE_NONE))
    keys = [line.split() for line in (shared / "data/mctest/mc160.train.ans").read_text().splitlines()]
    records = []
    for row, letters in zip(rows, keys, strict=True):
        story = Document(row[2].replace("\\newline", "\n").replace("\\tab", "\t"))
        for i, letter in enumerate(letters):
            question, *options = row[3 + 5 * i : 8 + 5 * i]
            answer = options["ABCD".index(letter)]
            records.append(Record(question.split(": ", 1)[1], (story,), (answer,), id=f"{row[0]}.{i}"))
    return records


def squad(shared: Path) -> list[Record]:
    """The first questions of every article, each with three paragraphs of its article."""
    data = json.loads((shared / "data/squad/dev-v1.1.json").read_text())["data"]
    records = []
    for article in data:
        contexts = [Document(p["context"], title=article["title"]) for p in article["paragraphs"][:3]]
        for paragraph in article["paragraphs"][:2]:
            qa = paragraph["qas"][0]
            answers = tuple(answer["text"] for answer in qa["answers"])
            records.append(Record(qa["question"], tuple(contexts), answers, id=qa["id"]))
    return records


@pytest.mark.parametrize("source", [mctest, squad])
def test_training_rows_are_the_inference_prompt_and_the_answer(shared, tokenizer, source):
    records = source(shared)
    assert len(records) > 40
    renderer = Renderer.for_tokenizer(tokenizer)
    assert renderer.mode == "plain"
    encoded = encode(records, tokenizer, renderer, max_length=None)
    assert encoded.report.kept == len(records) == len(encoded.rows)
    for record, row in zip(records, encoded.rows, strict=True):
        first = next(i for i, label in enumerate(row["labels"]) if label != -100)
        prompt, response = row["input_ids"][:first], row["labels"][first:]
        assert prompt == renderer.prompt_ids(tokenizer, record)
        assert prompt == tokenizer(renderer.prompt_text(tokenizer, record))["input_ids"]
        assert prompt[0] == tokenizer.bos_token_id
        assert prompt.count(tokenizer.bos_token_id) == 1
        assert row["input_ids"][first:] == response
        assert response[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(response[:-1]).strip() == record.answers[0].strip()
        assert tokenizer.decode(row["input_ids"], skip_special_tokens=True).endswith(
            f"Answer: {record.answers[0].strip()}"
        )
        assert aligned_tokens(row["labels"]) == first - 1


def test_rows_fit_the_model_s_512_positions_with_their_answers_whole(shared, tokenizer):
    records = squad(shared)
    renderer = Renderer.for_tokenizer(tokenizer)
    encoded = encode(records, tokenizer, renderer, max_length=512)
    report = encoded.report
    assert report.kept == len(records)
    assert report.documents_dropped > len(records)
    assert report.shortened > len(records) * 0.9, "three paragraphs never fit, so one is nearly always cut"
    assert max(report.total_tokens) <= 512 < min(report.whole_tokens)
    # Where one was cut, the row is full but for what the next token would have taken.
    assert sum(size > 512 - 8 for size in report.total_tokens) >= report.shortened
    for place, row in zip(encoded.places, encoded.rows, strict=True):
        response = [label for label in row["labels"] if label != -100]
        assert tokenizer.decode(response[:-1]).strip() == records[place].answers[0].strip()


def test_the_saved_renderer_serves_the_trained_prompt(shared, tokenizer, tmp_path):
    renderer = Renderer.for_tokenizer(tokenizer, system="Answer briefly.", order="reversed")
    renderer.save(tmp_path)
    for record in squad(shared)[:10]:
        row = encode([record], tokenizer, renderer, max_length=None).rows[0]
        served = render(tmp_path, record.question, [{"title": d.title, "text": d.text} for d in record.documents])
        ids = tokenizer(served)["input_ids"]
        assert row["input_ids"][: len(ids)] == ids
        assert row["labels"][len(ids) - 1] == -100 != row["labels"][len(ids)]


def test_a_table_of_everything_holds_the_rows_of_each_item_alone(
    shared: Path, tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All shapes and a mixture of them with SQuAD, in batches and chunks that cut across files."""
    monkeypatch.setattr(stored, "_CHUNK", 37)
    renderer = Renderer.for_tokenizer(tokenizer)
    items = [item for path in sorted((shared / "data/shapes").iterdir()) for item in usable(path)]
    assert {type(item) for item in items} == {Record, Conversation}
    mixture = [*items, *squad(shared)[:100], *items]
    encoding = stored.Encoding(tokenizer, renderer, 300, True, "keep", "skip")
    report = stored.write_encoded(tmp_path, mixture, encoding, 2)
    settings = {"max_length": 300, "cut_prompt_left": True, "on_bad_row": "skip"}
    alone = [encode([item], tokenizer, renderer, **settings) for item in mixture]
    assert stored.open_table(tmp_path).to_list() == [row for one in alone for row in one.rows]
    assert (report.rows, report.kept) == (len(mixture), sum(one.report.kept for one in alone))
    assert report.shortened


def usable(path: Path) -> list[Record | Conversation]:
    try:
        items = read_rows(path, needs_documents=False, on_bad_row="skip").items
    except DataError:
        return []  # a corpus, say
    return [item for item in items if not isinstance(item, dict)]
