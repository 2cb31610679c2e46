"""Do the readers read the real data sets, all of them, as a person reads them?"""

from __future__ import annotations

from pathlib import Path

import pytest

from selfaug.common.errors import DataError
from selfaug.data.read import Loaded, read_rows
from selfaug.data.record import Record

pytestmark = pytest.mark.shared


def first(loaded: Loaded) -> Record:
    record = loaded.items[0]
    assert isinstance(record, Record)
    return record


def records(loaded: Loaded) -> list[Record]:
    found = [item for item in loaded.items if isinstance(item, Record)]
    assert len(found) == len(loaded.items)
    assert loaded.problems == []
    return found


def test_squad(shared: Path) -> None:
    loaded = read_rows(shared / "data" / "squad" / "dev-v1.1.json")
    assert loaded.format == "squad"
    assert len(records(loaded)) == 4961
    record = first(loaded)
    assert record.question == "Which NFL team represented the AFC at Super Bowl 50?"
    assert record.answers == ("Denver Broncos",)  # Three annotators, one answer.
    assert record.id == "56be4db0acb8001400a502ec"
    assert record.documents[0].title == "Super Bowl 50"
    assert record.documents[0].text.startswith("Super Bowl 50 was an American football game to determine the champion")
    # Every answer of SQuAD is a span of its paragraph.
    assert all(answer in r.documents[0].text for r in records(loaded) for answer in r.answers)


def test_hotpotqa(shared: Path) -> None:
    loaded = read_rows(shared / "data" / "hotpotqa-distractor")
    assert loaded.format == "hotpotqa"
    assert len(records(loaded)) == 100
    record = first(loaded)
    assert record.question == "VIVA Media AG changed it's name in 2004. What does their new acronym stand for?"
    assert record.answers == ("Gesellschaft mit beschränkter Haftung",)
    assert record.id == "5a7613c15542994ccc9186bf"
    assert len(record.documents) == 10
    supporting = [d.title for d in record.documents if d.gold]
    assert supporting == ["VIVA Media", "Gesellschaft mit beschränkter Haftung"]
    viva = record.documents[1]
    assert viva.title == "VIVA Poland"
    assert viva.text.startswith('VIVA Polska (earlier "VIVApolska!") is a Polish 24h music')
    assert all(sum(bool(d.gold) for d in r.documents) == 2 for r in records(loaded))


def test_nq_needs_a_corpus(shared: Path) -> None:
    path = shared / "data" / "nq-retrieved-sample" / "test.jsonl"
    with pytest.raises(DataError, match="--corpus"):
        read_rows(path)
    loaded = read_rows(path, needs_documents=False)
    assert loaded.format == "ctxs"
    assert len(records(loaded)) == 17
    assert first(loaded) == Record(
        "who got the first nobel prize in physics", (), ("Wilhelm Conrad Röntgen",), "test_0"
    )


def test_crag(shared: Path) -> None:
    loaded = read_rows(shared / "data" / "crag-sample" / "dev_data.jsonl.bz2")
    assert loaded.format == "crag"
    assert len(records(loaded)) == 10
    record = first(loaded)
    assert (
        record.question
        == "is microsoft office 2019 available in a greater number of languages than microsoft office 2013?"
    )
    assert record.answers == ("yes",)
    assert record.id == "3dbed55e-66a3-4dcd-907d-096f49387e41"
    assert record.documents[0].title == "Office 2019 vs. Office 2016, Q&A: Licensing, Requirements, Benchmark, ..."
    # The sample repeats this page: five results, fewer documents.
    assert len(record.documents) < 5
    for r in records(loaded):
        for document in r.documents:
            assert "function(" not in document.text[:200]
            assert "</" not in document.text
            assert len(document.text) > 20


def test_mctest(shared: Path) -> None:
    folder = shared / "data" / "mctest"
    # The folder holds three splits, each of two sets; one at a time is read.
    stories = {split: len(records(read_rows(folder, split=split))) / 4 for split in ("train", "validation", "test")}
    assert stories == {"train": 70 + 300, "validation": 30 + 50, "test": 60 + 150}
    loaded = read_rows(folder / "mc160.train.tsv")
    assert loaded.format == "mctest"
    assert len(loaded.items) == 70 * 4
    record = first(loaded)
    assert record.id == "mc160.train.0.0"
    assert record.question == "What was the hardest thing for Tom and his friends to fix?"
    assert record.answers == ("Window",)
    assert record.documents[0].text.startswith("Tom had to fix some things around the house. He had to fix the door.")
    assert all("\\newline" not in r.documents[0].text for r in records(loaded))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ifeval/input_data.jsonl", "no known format"),
        ("tinystories/wikitext_1000.json", "expected a JSON object"),
        ("mctest/LICENSE.pdf", "binary"),
        ("arc-challenge", r"there is test \(arc_challenge_test\.jsonl\)"),
        ("arc-challenge/arc_challenge_test.jsonl", "documents"),
        ("gsm8k/test.jsonl", "documents"),
    ],
)
def test_what_is_not_rag_data_is_refused_by_name(shared: Path, name: str, message: str) -> None:
    assert (shared / "data" / name).exists()
    with pytest.raises(DataError, match=message):
        read_rows(shared / "data" / name)
