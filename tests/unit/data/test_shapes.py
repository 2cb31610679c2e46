"""Are people's own columns, tables and files read as they mean them, or refused with what would help?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from selfaug.common.errors import ConfigError, DataError
from selfaug.data.corpus import Corpus
from selfaug.data.fields import present
from selfaug.data.formats import mapped
from selfaug.data.read import read_rows
from selfaug.data.record import Conversation, Document, Record, RowError

MAY, LIES = Document("It falls in May."), Document("It lies.")


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


# ---- --map -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "paths", "record"),
    [
        (
            {"QUESTION": "When?", "CONTEXTS": ["It lies.", "It falls in May."], "final_decision": "May", "MESHES": []},
            ["question=QUESTION", "documents=CONTEXTS", "answer=final_decision"],
            Record("When?", (LIES, MAY), ("May",)),
        ),
        (
            {"question": "When?", "context": {"contexts": ["It falls in May."]}, "out": {"a": "May", "b": ["in May"]}},
            {"documents": "context.contexts", "answer": "out.a + out.b"},
            Record("When?", (MAY,), ("May", "in May")),
        ),
        (
            {"q": "When?", "hits": [{"body": "It lies.", "n": "Snow"}, {"body": "It falls in May.", "n": "Rain"}],
             "a": "May", "gold": ["Rain"]},
            {"question": "q", "documents": "hits[].body", "documents.title": "hits[].n", "answer": "a",
             "documents.relevant": "gold"},
            Record("When?", (Document("It lies.", "Snow", gold=False), Document("It falls in May.", "Rain", gold=True)),
                   ("May",)),
        ),
        (
            {"q": "When?", "d": {"s": {"t": "It lies."}, "r": {"t": "It falls in May."}}, "a": "May"},
            {"question": "q", "documents": "d[].t", "answer": "a"},
            Record("When?", (Document("It lies.", None, "s"), Document("It falls in May.", None, "r")), ("May",)),
        ),
        (
            {"q": "When?", "d": "It lies.###It falls in May.### ", "a": "May"},
            {"question": "q", "documents": "d.split(###)", "answer": "a"},
            Record("When?", (LIES, MAY), ("May",)),
        ),
        (
            {"q": "When?", "d": "It lies.\n\nIt falls in May.", "a": "May"},
            {"question": "q", "documents": r"d.split(\n\n)", "answer": "a"},
            Record("When?", (LIES, MAY), ("May",)),
        ),
        (
            {"q": "When?", "d": "It lies.", "a": "", "hopeless": True},
            {"question": "q", "documents": "d", "answer": "a", "answerable": "!hopeless"},
            Record("When?", (LIES,), (), answerable=False),
        ),
        (
            {"turns": [{"text": "When?"}], "context.text": "It falls in May.", "a": "May"},
            {"question": "turns[0].text", "documents": "context.text", "answer": "a"},
            Record("When?", (MAY,), ("May",)),
        ),
        (
            {"q": "Why?", "d": "It falls in May.", "a": "It is wet.", "chat": [{"question": "When?", "answer": "May"}]},
            {"question": "q", "documents": "d", "answer": "a", "history": "chat"},
            Record("Earlier questions and answers:\nWhen?\nMay\n\nWhy?", (MAY,), ("It is wet.",)),
        ),
    ],
)  # fmt: skip
def test_a_map_says_where_the_fields_stand(tmp_path: Path, row: dict[str, Any], paths: Any, record: Record) -> None:
    assert read_rows(write(tmp_path / "d.jsonl", [row]), mapping=paths).items == [record]


def test_a_map_reads_messages_and_prompts_too(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    path = write(tmp_path / "d.jsonl", [{"talk": turns, "ask": "Hi", "say": "Hello"}])
    said = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"})
    assert read_rows(path, mapping=["messages=talk"]).items == [Conversation(said)]
    assert read_rows(path, mapping=["prompt=ask", "completion=say"]).items == [{"prompt": "Hi", "completion": "Hello"}]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["qestion=q"], r"'qestion' is not a field.*Did you mean 'question'"),
        (["question"], r"'question' is not of the form FIELD=PATH"),
        (["question=q", "question=r"], "given twice"),
        (["question=[]q"], "not a path"),
        (["question=q[", "answer=a"], "not a path"),
    ],
)
def test_a_map_that_cannot_be_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mapped(words)


def test_a_path_to_nothing_names_the_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [{"question": "q", "documents": ["d"], "final_decision": "yes"}])
    with pytest.raises(DataError, match=r"answer=final_decison.*Did you mean 'final_decision'"):
        read_rows(path, mapping=["answer=final_decison"])
    with pytest.raises(ConfigError, match="both set"):
        read_rows(path, mapping=["answer=final_decision"], format="squad")
    with pytest.raises(RowError, match=r"field 'final_decision': expected an object with 'x'"):
        read_rows(write(tmp_path / "e.jsonl", [{"question": "q", "documents": ["d"], "final_decision": {"x": "y"}},
                                               {"question": "q", "documents": ["d"], "final_decision": "yes"}]),
                  mapping=["answer=final_decision.x"])  # fmt: skip


# ---- guesses ------------------------------------------------------------------------------------------------------


def test_a_guess_shows_three_records_and_unread_columns_and_a_known_row_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"query": f"When {i}?", "context": "It falls in May.", "response": "May", "level": 3} for i in range(5)]
    read_rows(write(tmp_path / "d.jsonl", rows))
    told = capsys.readouterr().err
    assert told.count("unread columns: level") == 1
    assert "question=query, documents=context, answer=response" in told
    assert [f"When {i}?" in told for i in range(5)] == [True, True, True, False, False]
    read_rows(write(tmp_path / "d.jsonl", [{"question": "q", "documents": ["d"], "answer": "a", "id": "1"}]),
              format="canonical")  # fmt: skip
    assert capsys.readouterr().err == ""


def test_a_row_without_its_reference_does_not_get_a_models_answer(tmp_path: Path) -> None:
    rows = [{"question": "q", "contexts": ["c"], "answer": "June", "ground_truth": "May"}]
    rows.append({**rows[0], "ground_truth": None})  # type: ignore[dict-item]
    for name in ("ground_truth", "expected_answer"):
        path = write(
            tmp_path / "d.jsonl", [{(name if k == "ground_truth" else k): v for k, v in r.items()} for r in rows]
        )
        loaded = read_rows(path, on_bad_row="skip")
        assert [item.answers for item in loaded.items if isinstance(item, Record)] == [("May",)]
        assert [problem.field for problem in loaded.problems] == [name]


def test_two_files_take_their_answers_from_one_column(tmp_path: Path) -> None:
    row = {"question": "q", "contexts": ["c"], "answer": "June", "ground_truth": "May"}
    write(tmp_path / "a.jsonl", [row])
    write(tmp_path / "b.jsonl", [{**row, "ground_truth": None, "ground_truths": ["x"]}])
    with pytest.raises(RowError, match=r"b\.jsonl, line 1, field 'ground_truth'"):
        read_rows(tmp_path)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"frage": "Wann?", "absaetze": ["Es liegt.", "Im Mai."], "antwort": "Mai"},
            "--map question=frage documents=absaetze answer=antwort",
        ),
        (
            {"qa_question": "Wann?", "Related Passages": "Im Mai.", "gold_answer_text": "Mai"},
            "--map question=qa_question 'documents=Related Passages' answer=gold_answer_text",
        ),
        (
            {
                "uid": "1",
                "level": 3,
                "source": None,
                "split_no": 1,
                "qqq": "Wann?",
                "meta": {"text": "Es regnet im Mai und im Juni."},
                "aaa": "Mai",
            },
            "--map question=qqq documents=meta.text answer=aaa",
        ),
    ],
)
def test_an_unknown_file_is_told_the_map_that_fits(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    path = write(tmp_path / "d.jsonl", [row])
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert words in caught.value.hint
    assert all(name in caught.value.message for name in row)
    mapping = [word.strip("'") for word in words.replace("Related Passages", "Related_Passages").split()[1:]]
    mapping = [word.replace("Related_Passages", "Related Passages") for word in mapping]
    assert isinstance(read_rows(path, mapping=mapping).items[0], Record)


@pytest.mark.parametrize(
    ("change", "field"),
    [({"weight": 0}, "weight"), ({"sample_weight": 0.5}, "sample_weight"), ({"train": False}, "train"),
     ({"images": ["a.png"]}, "images")],
)  # fmt: skip
def test_what_a_column_decides_is_refused_by_name(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    row = {"question": "q", "documents": ["d"], "answer": "a", "weight": 1, "train": True, "images": []}
    assert len(read_rows(write(tmp_path / "d.jsonl", [row])).items) == 1
    with pytest.raises(RowError) as caught:
        read_rows(write(tmp_path / "d.jsonl", [row, {**row, **change}]))
    assert caught.value.field == field


def test_an_unwanted_completion_is_not_trained(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": "good", "label": True}, {"prompt": "p", "completion": "bad", "label": False}]
    with pytest.raises(RowError, match="field 'label'"):
        read_rows(write(tmp_path / "d.jsonl", rows))


def test_trl_rows_of_other_columns_are_refused_with_both(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"prompt": "p", "completion": "c"}] * 2)
    write(tmp_path / "b.jsonl", [{"text": "t"}])
    with pytest.raises(RowError, match=r"b\.jsonl, line 1: expected the columns .*completion, prompt.*received text"):
        read_rows(tmp_path)


def test_variables_of_a_template_in_a_row_of_messages_are_refused(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    assert len(read_rows(write(tmp_path / "d.jsonl", [{**row, "chat_template_kwargs": {}}])).items) == 1
    with pytest.raises(RowError, match="field 'chat_template_kwargs'"):
        read_rows(write(tmp_path / "d.jsonl", [{**row, "chat_template_kwargs": {"enable_thinking": False}}]))


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.csv", "question,documents,answer\nWhen?,It falls in May.,May\n"),
        ("d.csv", '\ufeffquestion;documents;answer\r\nWhen?;"It falls in May.";May\r\n\r\n'),
        ("d.tsv", "question\tdocuments\tanswer\nWhen?\tIt falls in May.\tMay\n"),
        ("d.csv", 'question,documents,answer,id\nWhen?,"[""It falls in May.""]","[""May""]",\n'),
        ("d.csv", "question,documents,answer,answerable\nWhen?,\"['It falls in May.']\",May,True\n"),
    ],
)
def test_tables_are_read_by_their_headers(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, "utf-8", newline="")
    assert read_rows(tmp_path / name).items == [Record("When?", (MAY,), ("May",))]


def test_cells_keep_separators_quotes_and_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text('question,documents,answer\n"When, exactly?","It ""falls""\nin May.",May\n', "utf-8")
    assert read_rows(path).items == [Record("When, exactly?", (Document('It "falls"\nin May.'),), ("May",))]


@pytest.mark.parametrize(
    ("line", "field", "received"),
    [
        ("When?,It falls in May.", "", "2 cells"),
        ("When?,It falls, in May.,May", "", "4 cells"),
        ("When?,\"['It lies.' 'It falls in May.']\",May", "documents", "It lies"),
        ('When?,"It "falls" in May.",May', "", "expected after"),
    ],
)
def test_a_bad_line_of_a_table_is_a_bad_row(tmp_path: Path, line: str, field: str, received: str) -> None:
    good = "When?,It falls in May.,May"
    path = tmp_path / "d.csv"
    path.write_text(f"question,documents,answer\n{good}\n{line}\n{good}\n", "utf-8")
    with pytest.raises(RowError) as caught:
        read_rows(path)
    assert (caught.value.where.line, caught.value.field) == (3, field)
    assert received in caught.value.received
    assert len(read_rows(path, on_bad_row="skip").items) == 2


@pytest.mark.parametrize(
    "document",
    [
        {"21": {"question": "When?", "context": "It falls in May.", "answer": "May"}},
        {"examples": [{"id": "21", "question": "When?", "context": "It falls in May.", "answer": "May"}]},
        {"id": {"0": "21"}, "question": {"0": "When?"}, "context": {"0": "It falls in May."}, "answer": {"0": "May"}},
    ],
)
def test_json_by_ids_in_a_wrapper_or_by_columns(tmp_path: Path, document: Any) -> None:
    (tmp_path / "d.json").write_text(json.dumps(document), "utf-8")
    assert read_rows(tmp_path / "d.json").items == [Record("When?", (MAY,), ("May",), "21")]


@pytest.mark.parametrize(
    ("name", "content", "passages"),
    [
        ("c.tsv", "_id\ttitle\ttext\nd1\tRain\tIt falls.\nd2\tSnow\t\n", [("d1", "Rain"), ("d2", None, "Snow")]),
        ("c.tsv", "id\ttext\ttitle\n1\tIt falls.\tRain\n", [("1", "Rain")]),
        ("c.tsv", "wiki:1\tIt falls.\tRain\n", [("wiki:1", "Rain")]),
        ("c.csv", "title,text\nRain,It falls.\n", [(None, "Rain")]),
        ("c.jsonl", '{"page_content": "It falls.", "metadata": {"title": "Rain"}}\n', [(None, "Rain")]),
        ("c.jsonl", '{"id_": "n", "text": "It falls.", "metadata": {}, "class_name": "TextNode"}\n', [("n", None)]),
        ("c.jsonl", '{"_id": "d", "title": "", "text": "It falls.", "metadata": {}}\n', [("d", None)]),
    ],
)  # fmt: skip
def test_corpora_of_all_kinds(tmp_path: Path, name: str, content: str, passages: list[Any]) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    found = [(p.id, p.title, p.text) for p in Corpus.load(tmp_path / name).passages]
    assert found == [(*passage, "It falls.")[:3] for passage in passages]


def test_a_corpus_among_the_data_is_told_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="passages of a corpus"):
        read_rows(write(tmp_path / "c.jsonl", [{"page_content": "It falls in May.", "metadata": {}}]))


def test_sentences_without_spaces_between_them_are_parted(tmp_path: Path) -> None:
    row = {"_id": "w", "question": "When?", "answer": "May", "context": [["Rain", ["It is wet.", "It falls in May."]]]}
    (item,) = read_rows(write(tmp_path / "d.jsonl", [row])).items
    assert isinstance(item, Record)
    assert item.documents[0].text == "It is wet. It falls in May."


def test_nulls_go_at_every_depth_but_stay_in_lists() -> None:
    row = {"a": None, "b": {"c": None, "d": [{"e": None, "f": 1}, None, [None, {"g": None}]]}, "h": [1, None]}
    assert present(row) == {"b": {"d": [{"f": 1}, None, [None, {}]]}, "h": [1, None]}
