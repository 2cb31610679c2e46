"""Does every file of the shared data mean what a person reads in it, through the reader of `prepare` and `train`?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfaug.common.errors import DataError
from selfaug.data.corpus import Corpus
from selfaug.data.read import read_rows
from selfaug.data.record import Conversation, Document, Record

pytestmark = pytest.mark.shared

Q, A = "Who built the bridge?", ("Brunel",)
BRIDGE = "The bridge was built by Brunel in 1864."
DOC = Document(BRIDGE)
PLAIN = [Record(Q, (DOC,), A)]
EARLIER = "Earlier questions and answers:\n"


def talk(*turns: tuple[str, str]) -> list[Any]:
    return [Conversation(tuple({"role": role, "content": content} for role, content in turns))]


# By hand.
SHAPES: dict[str, list[Any]] = {
    "alpaca.jsonl": PLAIN,
    "capital.jsonl": PLAIN,
    "coqa.jsonl": [
        Record("Who built?", (DOC,), A, "x.0"),
        Record(f"{EARLIER}Who built?\nBrunel\n\nWhen?", (DOC,), ("1864",), "x.1"),
    ],
    "documents_content.jsonl": PLAIN,
    "documents_pagecontent.jsonl": PLAIN,
    "documents_str.jsonl": PLAIN,
    "dolly.jsonl": PLAIN,
    "langchain_qa.jsonl": PLAIN,
    "messages_developer.jsonl": talk(("system", "be brief"), ("user", "hi"), ("assistant", "hello")),
    "msmarco.jsonl": [
        Record(Q, (Document(BRIDGE, None, "u", gold=True), Document("Z", None, "v", gold=False)), A, "1")
    ],
    "musique.jsonl": [Record(Q, (Document(BRIDGE, "T", gold=True),), ("Brunel", "I. K. Brunel"), "m")],
    "q_context_answer.jsonl": PLAIN,
    "q_contextlist_answer.jsonl": [Record(Q, (DOC, Document("Other text.")), A)],
    "q_contexts_ground_truth.jsonl": PLAIN,
    "quac.jsonl": [
        Record("Who?", (Document(BRIDGE, "Bridge"),), A, "q0"),
        Record(f"{EARLIER}Who?\nBrunel\n\nCost?", (Document(BRIDGE, "Bridge"),), (), "q1", answerable=False),
    ],
    "query_context_response.jsonl": PLAIN,
    "ragas_eval.jsonl": PLAIN,
    "sharegpt.jsonl": talk(("user", Q), ("assistant", "Brunel")),
    "triviaqa_hf.jsonl": [Record(Q, (Document(BRIDGE, "t"),), ("Brunel", "I. K. Brunel"), "t")],
    "x.tsv": [Record("Who?", (Document("It was Brunel."),), A)],
}
TALKS = ("messages_tool_round.jsonl", "messages_tools.jsonl", "messages_weight.jsonl")


def test_no_file_of_the_shapes_is_left_out(shared: Path) -> None:
    known = {*SHAPES, *TALKS, "corpus_langchain.jsonl"}
    assert {path.name for path in (shared / "data" / "shapes").iterdir()} <= known


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(shared: Path, name: str) -> None:
    assert read_rows(shared / "data" / "shapes" / name).items == SHAPES[name]


@pytest.mark.parametrize("name", TALKS)
def test_conversations_are_kept_as_they_are(shared: Path, name: str) -> None:
    import json

    path = shared / "data" / "shapes" / name
    row = json.loads(path.read_text("utf-8"))
    (item,) = read_rows(path).items
    assert isinstance(item, Conversation)
    expected = [{**message, "content": message.get("content") or ""} for message in row["messages"]]
    assert list(item.messages) == expected
    assert list(item.tools or ()) == row.get("tools", [])


def test_a_corpus_of_langchain(shared: Path) -> None:
    path = shared / "data" / "shapes" / "corpus_langchain.jsonl"
    assert tuple(Corpus.load(path).passages) == (DOC, Document("Cats purr."))
    with pytest.raises(DataError, match="passages of a corpus"):
        read_rows(path)


# Question, first accepted answer and title of the best-known document, of the first, second and last row.
REAL: dict[str, list[tuple[str, str]]] = {
    "squad/dev-v1.1.json": [
        ("Which NFL team represented the AFC at Super Bowl 50?", "Denver Broncos"),
        ("Which NFL team represented the NFC at Super Bowl 50?", "Carolina Panthers"),
        ("Where did Super Bowl 50 take place?", "Santa Clara, California"),
    ],
    "hotpotqa-distractor": [
        (
            "VIVA Media AG changed it's name in 2004. What does their new acronym stand for?",
            "Gesellschaft mit beschränkter Haftung",
        ),
    ],
    "gsm8k/test.jsonl": [
        ("Janet’s ducks lay 16 eggs per day.", "Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 duck eggs a day.")
    ],
    "nq-retrieved-sample/test.jsonl": [
        ("who got the first nobel prize in physics", "Wilhelm Conrad Röntgen"),
        ("when is the next deadpool movie being released", "May 18, 2018"),
    ],
    "mctest/mc160.train.tsv": [("What was the hardest thing for Tom and his friends to fix?", "Window")],
}


@pytest.mark.parametrize("name", REAL)
def test_real_sets(shared: Path, name: str) -> None:
    items = read_rows(shared / "data" / name, needs_documents=False).items
    for item, (question, answer) in zip(items, REAL[name], strict=False):
        assert isinstance(item, Record)
        assert item.question.startswith(question)
        assert item.answers[0].startswith(answer)


def test_nq_corpus(shared: Path) -> None:
    passages = Corpus.load(shared / "data" / "nq-retrieved-sample" / "sample_data.jsonl").passages
    assert [(p.id, p.title) for p in passages[:2]] == [("0", "Evan Morris"), ("1", "Horatio Hale")]
    assert len(passages) == 1000


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ifeval/input_data.jsonl", "no known format: .*instruction_id_list"),
        ("arc-challenge/arc_challenge_test.jsonl", "field 'documents'"),
        ("tinystories/tinystories_1000.json", "expected a JSON object"),
    ],
)
def test_what_holds_no_questions_with_documents_is_refused(shared: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_rows(shared / "data" / name)
