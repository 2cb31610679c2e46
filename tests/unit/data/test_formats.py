"""Does each reader give the record that the row means, and an error for anything else?"""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from selfaug.common.errors import ConfigError, DataError
from selfaug.data.formats import FORMATS, detect, get_format
from selfaug.data.formats.html import html_text
from selfaug.data.read import read_rows
from selfaug.data.record import Conversation, Document, Record, RowError, Where
from tests.unit.data.samples import MEANING, ROWS, format_of

HERE = Where("f", 1)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize("sample", ROWS)
def test_a_row_means_its_record_and_its_format_is_told(tmp_path: Path, sample: str) -> None:
    path = write(tmp_path / "data.jsonl", [ROWS[sample]])
    told = read_rows(path)
    assert told.items == MEANING[sample]
    assert told.format == format_of(sample)
    assert told.problems == []
    assert told.files == (path,)
    first = MEANING[sample][0]
    assert told.kind == (
        "record" if isinstance(first, Record) else "trl" if isinstance(first, dict) else "conversation"
    )
    assert read_rows(path, format=format_of(sample)).items == MEANING[sample]


def test_every_format_has_a_sample() -> None:
    assert {format_of(sample) for sample in ROWS} | {"mctest"} == set(FORMATS)


def test_the_format_is_told_by_most_rows() -> None:
    assert detect([ROWS["crag"], ROWS["canonical"], ROWS["crag"]]) == "crag"
    with pytest.raises(DataError, match=r"no known format.*'qestion'.*Did you mean 'question'"):
        detect([{"qestion": "x", "docs": []}])


def test_an_unknown_format_names_the_near_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"format='squid'.*Did you mean 'squad'"):
        get_format("squid")
    path = write(tmp_path / "data.jsonl", [ROWS["canonical"]])
    with pytest.raises(ConfigError, match=r"on_bad_row='skipp'.*Did you mean 'skip'"):
        read_rows(path, on_bad_row="skipp")


@pytest.mark.parametrize(
    ("sample", "change", "field"),
    [
        ("squad article", {"paragraphs": []}, "paragraphs"),
        ("squad article", {"paragraphs": [3]}, "paragraphs[0]"),
        ("squad article", {"paragraphs": [{"context": "c", "qas": [3]}]}, "paragraphs[0].qas[0]"),
        (
            "squad article",
            {"paragraphs": [{"context": "c", "qas": [{"question": "q"}]}]},
            "paragraphs[0].qas[0].answers",
        ),
        ("squad columns", {"context": ""}, "context"),
        ("squad columns", {"answers": {"text": [""]}}, "answers.text[0]"),
        ("hotpotqa pairs", {"context": [["t"]]}, "context[0][1]"),
        ("hotpotqa pairs", {"context": [["t", [1]]]}, "context[0][1]"),
        ("hotpotqa pairs", {"context": [["t", []]]}, "context[0][1]"),
        ("hotpotqa pairs", {"context": []}, "context"),
        ("hotpotqa pairs", {"answer": None}, "answer"),
        ("hotpotqa columns", {"context": {"title": ["a"], "sentences": []}}, "context.title"),
        ("ctxs DPR", {"ctxs": [{"text": "x", "score": "high"}]}, "ctxs[0].score"),
        ("ctxs DPR", {"ctxs": [{"title": "x"}]}, "ctxs[0].text"),
        ("ctxs DPR", {"ctxs": []}, "ctxs"),
        ("ctxs DPR", {"answers": []}, "answers"),
        ("crag", {"alternative_answers": "[1"}, "alternative_answers"),
        ("crag", {"alternative_answers": [1]}, "alternative_answers[0]"),
        ("crag", {"search_results": []}, "search_results"),
        ("crag", {"search_results": [{"page_result": 5}]}, "search_results[0].page_result"),
        ("raft", {"cot_answer": None}, "cot_answer"),
        ("raft", {"context": {"sentences": [[1]]}}, "context.sentences[0][0]"),
        ("raft", {"context": None}, "context"),
        ("followrag", {"answer_gold": 3}, "answer_gold"),
        ("followrag", {"passages": [{"title": "t"}]}, "passages[0].text"),
        ("rag-instruct", {"documents": ["a", 1]}, "documents[1]"),
        ("rag-instruct", {"answer": ["a", 1]}, "answer[1]"),
        ("trl pair", {"completion": ""}, "completion"),
        ("trl pair", {"prompt": 3}, "prompt"),
        ("trl chat pair", {"completion": "May"}, "completion"),
        ("trl chat pair", {"prompt": [{"role": "user"}]}, "prompt[0].content"),
        ("trl text", {"text": " "}, "text"),
        ("trl tokens", {"input_ids": [1, True, 3]}, "input_ids"),
        ("trl tokens", {"input_ids": []}, "input_ids"),
        ("trl tokens", {"labels": [-100]}, "labels"),
        ("trl tokens", {"labels": [-1, 2, 3]}, "labels"),
        ("trl tokens", {"attention_mask": [1, 2, 1]}, "attention_mask"),
    ],
)
def test_a_bad_field_is_named(tmp_path: Path, sample: str, change: dict[str, Any], field: str) -> None:
    name = format_of(sample)
    assert read_rows(write(tmp_path / "good.jsonl", [ROWS[sample]]), format=name).items == MEANING[sample]
    path = write(tmp_path / "bad.jsonl", [ROWS[sample], {**ROWS[sample], **change}])
    with pytest.raises(RowError) as caught:
        read_rows(path, format=name)
    assert caught.value.field == field
    assert f"{path}, line 2, field {field!r}" in caught.value.message
    skipped = read_rows(path, format=name, on_bad_row="skip")
    assert skipped.items == MEANING[sample]
    assert [problem.field for problem in skipped.problems] == [field]


@pytest.mark.parametrize("more", [{"system": "Be brief."}, {"answerable": False}, {"answer": ["a", "b"]}, {}])
def test_documents_may_be_texts_beside_every_other_field(tmp_path: Path, more: dict[str, Any]) -> None:
    row = {"question": "q", "documents": ["one", {"title": "t", "text": "two"}], "answer": "a", **more}
    if more == {"answerable": False}:
        del row["answer"]
    (item,) = read_rows(write(tmp_path / "rows.jsonl", [row])).items
    texts = (Document("one"), Document("two", "t"))
    answers = tuple(row["answer"]) if "answer" in more else ("a",) if "answer" in row else ()
    assert item == Record("q", texts, answers, system=more.get("system"), answerable=more.get("answerable", True))


def test_one_bad_question_does_not_lose_its_article(tmp_path: Path) -> None:
    article = json.loads(json.dumps(ROWS["squad article"]))
    article["paragraphs"][0]["qas"].insert(1, {"question": "", "answers": [{"text": "x"}]})
    article["paragraphs"].insert(0, {"context": "c", "qas": 5})
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"version": "v2.0", "data": [article]}), "utf-8")
    loaded = read_rows(path, on_bad_row="skip")
    assert loaded.items == MEANING["squad article"]
    assert [problem.field for problem in loaded.problems] == ["paragraphs[0].qas", "paragraphs[1].qas[1].question"]
    assert "squad.json, row 1" in loaded.problems[0].message


@pytest.mark.parametrize(
    ("answer", "answers", "answerable"),
    [("I don’t know.", (), False), ("i don't know", (), False), ("invalid question", ("invalid question",), False)],
)
def test_crag_answers_that_abstain(answer: str, answers: tuple[str, ...], answerable: bool) -> None:
    record = FORMATS["crag"].parse({**ROWS["crag"], "answer": answer, "alternative_answers": "[]"}, HERE, True)
    assert isinstance(record, Record)
    assert (record.answers, record.answerable) == (answers, answerable)


def test_squad_keeps_no_answer_of_an_impossible_question() -> None:
    row = {**ROWS["squad columns"], "is_impossible": True}
    assert row["answers"]["text"]
    record = FORMATS["squad"].parse(row, HERE, True)
    assert isinstance(record, Record)
    assert (record.answers, record.answerable) == ((), False)


def test_raft_without_a_reasoned_answer_takes_the_plain_one() -> None:
    record = FORMATS["raft"].parse({**ROWS["raft"], "cot_answer": None, "answer": "May"}, HERE, True)
    assert isinstance(record, Record)
    assert record.answers == ("May",)


def test_columns_that_trl_does_not_read_are_dropped() -> None:
    assert FORMATS["trl"].parse({**ROWS["trl pair"], "when": object()}, HERE, True) == ROWS["trl pair"]


CELLS = ["s0", "Author: 1", "It falls\\newlinein May."]
QUESTION = ["one: When?", "May", "June", "July", "Never"]


def test_mctest_joins_stories_and_answers(tmp_path: Path) -> None:
    (tmp_path / "mc.tsv").write_text("\t".join((*CELLS, *QUESTION * 4)) + "\n", "utf-8")
    (tmp_path / "mc.ans").write_text("A\tB\tX\tD\n", "utf-8")
    loaded = read_rows(tmp_path, on_bad_row="skip")
    assert loaded.format == "mctest"
    assert [(r.id, r.question, r.answers, r.documents[0].text) for r in loaded.items if isinstance(r, Record)] == [
        (f"s0.{q}", "When?", (answer,), "It falls\nin May.") for q, answer in ((0, "May"), (1, "June"), (3, "Never"))
    ]
    assert [problem.field for problem in loaded.problems] == ["question 3.letter"]


def test_mctest_without_its_answers_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "mc.tsv").write_text("\t".join((*CELLS, *QUESTION * 4)) + "\n", "utf-8")
    with pytest.raises(DataError, match=r"mc\.ans"):
        read_rows(tmp_path / "mc.tsv")
    (tmp_path / "mc.ans").write_text("A\tB\tC\tD\nA\tB\tC\tD\n", "utf-8")
    with pytest.raises(DataError, match="2 lines, but"):
        read_rows(tmp_path / "mc.tsv")


def test_records_and_conversations_may_be_mixed(tmp_path: Path) -> None:
    loaded = read_rows(write(tmp_path / "data.jsonl", [ROWS["conversation"], ROWS["canonical"]]))
    assert [type(item) for item in loaded.items] == [Conversation, Record]
    assert loaded.kind == "record"


@pytest.mark.parametrize(
    "name", ["d.jsonl", "d.ndjson", "d.json", "d.jsonl.gz", "d.json.gz", "d.jsonl.bz2", "d.bz2", "d.parquet"]
)
def test_every_packing_gives_the_same_records(tmp_path: Path, name: str) -> None:
    rows = [{**ROWS["canonical"], "id": str(i)} for i in range(3)]
    lines = "\ufeff" + "\n\n".join(json.dumps(row) for row in rows)
    content = (json.dumps(rows) if ".json" in name and ".jsonl" not in name else lines).encode()
    path = tmp_path / name
    if name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_bytes({".gz": gzip.compress, ".bz2": bz2.compress}.get(path.suffix, lambda b: b)(content))
    loaded = read_rows(path)
    assert [item.to_row() for item in loaded.items if isinstance(item, Record)] == [
        {"id": str(i), **ROWS["canonical"]} for i in range(3)
    ]


def test_lines_under_the_name_json_are_read(tmp_path: Path) -> None:
    assert len(read_rows(write(tmp_path / "d.json", [ROWS["canonical"]] * 3)).items) == 3


def test_a_folder_is_read_in_the_order_of_names_and_other_files_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", [{**ROWS["canonical"], "id": "b"}])
    write(tmp_path / "a.jsonl", [{**ROWS["canonical"], "id": "a"}])
    (tmp_path / "README.md").write_text("about", "utf-8")
    assert [item.id for item in read_rows(tmp_path).items if isinstance(item, Record)] == ["a", "b"]
    write(tmp_path / "c.jsonl", [ROWS["crag"]])
    with pytest.raises(DataError, match=r"a\.jsonl is in the format canonical and .*c\.jsonl is in the format crag"):
        read_rows(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", b"", "the file is empty"),
        ("d.jsonl", b" \n\n", "holds no row"),
        ("d.json", b"  ", "only blank space"),
        ("d.json", b"[]", "holds no row"),
        ("d.json", b"3", "expected a list of objects"),
        ("d.json", b'[{"question": "q"},\n {"question" "q"}]', r"line 2, column 14: .*not JSON"),
        ("d.json", b'[{"question": "\xff"}]', "byte 0xff on line 1"),
        ("d.jsonl", b'\x7fELF\x00\x01{"question"', "binary"),
        ("d.jsonl", '{"question": "q"}'.encode("utf-16"), "UTF-16"),
        ("d.jsonl", gzip.compress(b"x" * 50, mtime=0), r"name it d\.jsonl\.gz"),
        ("d.jsonl.gz", b"not packed at all", "damaged or cut short"),
        ("d.jsonl.gz", gzip.compress(json.dumps(ROWS["canonical"]).encode(), mtime=0)[:-12], "damaged or cut short"),
        ("d.jsonl.bz2", bz2.compress(b"x" * 50)[:-9], "damaged or cut short"),
        ("d.parquet", b"PAR1 and then nothing", "damaged or no parquet"),
        ("d.csv", b"question,answer\n", "holds no row"),
        ("d.csv", b"question,question\na,b\n", "each column needs a name of its own"),
        ("d.csv", "question,answer\nq,\u00e4\n".encode("latin-1"), "byte 0xe4 is not UTF-8"),
        ("d.txt", b"question,answer\n", "suffix '.txt'"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    for on_bad_row in ("error", "skip"):
        with pytest.raises(DataError, match=message) as caught:
            read_rows(tmp_path / name, on_bad_row=on_bad_row)
        assert caught.value.hint


def test_broken_lines_name_their_number_and_can_be_skipped(tmp_path: Path) -> None:
    good = json.dumps(ROWS["canonical"]).encode()
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\n".join((good, good[:-9], good, b'{"a": "\xff"}', b"[1]", b"1" * 5000, b"[" * 100_000, good)))
    with pytest.raises(RowError, match=r"d\.jsonl, line 2: expected one JSON object"):
        read_rows(path)
    loaded = read_rows(path, on_bad_row="skip")
    assert len(loaded.items) == 3
    assert [problem.where.line for problem in loaded.problems] == [2, 4, 5, 6, 7]


def test_a_path_that_does_not_exist_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "train.jsonl", [ROWS["canonical"]])

    def unreachable(*args: object, **kwargs: object) -> None:
        raise AssertionError("the hub was asked for a path")

    import datasets

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"no such file or folder\. Did you mean 'train\.jsonl'"):
        read_rows(tmp_path / "trian.jsonl")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for missing in ("nothing", "./org/name", "data/name", "org/name.jsonl", "~/nothing/here", "a\0b"):
        with pytest.raises(DataError, match=r"no such file|cannot be opened"):
            read_rows(missing)
    with pytest.raises(DataError, match="the hub was asked"):  # What does look like a hub name asks the hub.
        read_rows("org/name")


def test_no_usable_row_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [{"question": "q", "answer": "a"}] * 3)
    with pytest.raises(DataError, match=r"no usable row; the first of 3 bad rows: .*line 1, field 'documents'"):
        read_rows(path, on_bad_row="skip")
    assert len(read_rows(path, needs_documents=False).items) == 3


def test_progress_counts_every_row(tmp_path: Path) -> None:
    seen: list[int] = []
    path = write(tmp_path / "d.jsonl", [ROWS["canonical"], {"question": 1}, ROWS["canonical"]])
    read_rows(path, on_bad_row="skip", progress=seen.append)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("plain &amp; simple", "plain & simple"),
        ("<p>a\n  b</p><p>c<br>d</p>", "a b\nc\nd"),
        ("<script>var a = '<p>no</p>';</script>yes<style>p {}</style>", "yes"),
        ("<head><title>no</title><p>body without its tag", "no body without its tag"),
        ("<head><meta></head><body><nav>no</nav>yes<footer>no</footer></body>", "yes"),
        ("<svg>never closed <p>but the only text", "never closed but the only text"),
        ("<![x declarations <p>that the parser refuses</p>", "<![x declarations that the parser refuses"),
        ("<script>never closed", ""),
        ("<pre>a\n b</pre>", "a\nb"),
        ("<td>1</td><td>2</td>", "1 2"),
        ("\ud800<b>x</b>", "?x"),
        ("", ""),
    ],
)
def test_html_text(page: str, text: str) -> None:
    assert html_text(page) == text
