"""Which rows does the trainer take, and what is refused before a model is loaded?"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from datasets import Dataset

from selfaug import SelfAugConfig, SelfAugTrainer
from selfaug.cli.data import open_sources
from selfaug.common.errors import ConfigError, DataError, UserError
from selfaug.data.record import Conversation, Record
from selfaug.training.rows import check_rows, formatted, prepare_rows, takes_items
from tests.integration import small

TURNS = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}]
RECORD = {"question": "w1", "documents": [{"text": "w2"}], "answer": "w3"}


def check(rows: list[dict[str, Any]], *, formatting_func: Any = None, aligns: bool = True) -> None:
    table = Dataset.from_list(rows)
    check_rows(table, "train", formatting_func=formatting_func, text_field="text", aligns=aligns)


def trainer(tmp_path: Path, rows: list[dict[str, Any]], model: Any = None, **options: Any) -> SelfAugTrainer:
    formatting_func = options.pop("formatting_func", None)
    args = SelfAugConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], max_length=64, **options)
    return SelfAugTrainer(
        model or small.model(),
        args,
        train_dataset=Dataset.from_list(rows),
        processing_class=small.tokenizer(),
        formatting_func=formatting_func,
    )


@pytest.mark.parametrize(
    "rows",
    [
        [RECORD],
        [{"messages": TURNS}],
        [{"prompt": "w1 w2", "prompt_id": "x", "messages": TURNS}],  # UltraChat
        [{"conversations": [{"from": "human", "value": "w1"}, {"from": "gpt", "value": "w3"}]}],
        [{"query": "w1", "context": "w2", "response": "w3"}],
        [{"instruction": "w1", "input": "", "output": "w3"}],
    ],
)
def test_records_and_conversations_of_every_shape(rows: list[dict[str, Any]]) -> None:
    check(rows)
    assert takes_items(Dataset.from_list(rows))


def test_a_prompt_beside_messages_is_trained_as_messages_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = {"prompt": "w9", "prompt_id": "x", "messages": TURNS}
    with caplog.at_level("WARNING", "selfaug.training.rows"):
        made = trainer(tmp_path, [row], alpha=0.0)
    assert "train: unread columns: prompt, prompt_id" in caplog.text
    ids = made.train_dataset[0]["input_ids"]
    words = small.tokenizer().decode(ids)
    assert "w1 w2" in words
    assert "w3" in words
    assert "w9" not in words


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "w1"}], "no known format"),
        ([{"prompt": "w1", "chosen": "w2", "rejected": "w3"}], "no known format"),
        ([{"messages": [TURNS[0]]}], "field 'messages'"),
        ([{"messages": TURNS, "chat_template_kwargs": {"a": 1}}], "field 'chat_template_kwargs'"),
        ([{**RECORD, "weight": 0}], "field 'weight'"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_model(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        trainer(tmp_path, rows, model="/no/model/here")


def test_a_table_on_the_disk_is_encoded_once_into_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [RECORD, {**RECORD, "question": "w5 w6"}]
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def prepared() -> Dataset:
        return prepare_rows(
            datasets.load_from_disk(str(tmp_path / "saved")),
            tokenizer=small.tokenizer(),
            renderer=None,
            max_length=64,
            cut_prompt_left=False,
            tokenise=lambda table: table,
            name="train",
        )

    first = prepared()
    assert first.to_list() == trainer(tmp_path, rows, alpha=0.0).train_dataset.to_list()
    assert all(Path(file["filename"]).is_relative_to(tmp_path / "cache") for file in first.cache_files)
    monkeypatch.setattr("selfaug.training.rows.write_encoded", None)  # not called again
    assert prepared().to_list() == first.to_list()


def words_of(row: dict[str, Any]) -> str:
    return "w5 " + str(row.get("question", row.get("messages")))


@pytest.mark.parametrize("row", [RECORD, {"messages": TURNS}, {"prompt": "w1", "completion": "w3"}])
def test_formatting_func_is_refused_where_prompts_are_aligned(tmp_path: Path, row: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="formatting_func makes texts of which every token is trained"):
        trainer(tmp_path, [row], model="/no/model/here", formatting_func=words_of)
    with pytest.raises(ConfigError, match="formatting_func is set, and the train data set holds tokens"):
        check([{"input_ids": [1]}], formatting_func=words_of, aligns=False)


@pytest.mark.parametrize("row", [RECORD, {"messages": TURNS}])
def test_formatting_func_is_followed_without_alignment(tmp_path: Path, row: dict[str, Any]) -> None:
    made = trainer(tmp_path, [row], alpha=0.0, formatting_func=lambda row: "w5 w6")
    assert small.tokenizer().decode(made.train_dataset[0]["input_ids"], skip_special_tokens=True) == "w5 w6"
    with pytest.raises(UserError, match="formatting_func returned list"):
        formatted(Dataset.from_list([row]), lambda row: ["w5"], "text")


# ---- mixtures -----------------------------------------------------------------------------------------------------


def mixture(*entries: dict[str, Any], **more: Any) -> Any:
    default = {"name": None, "data_dir": None, "data_files": None, "split": "train", "columns": None, "fraction": None}
    entries_ = [SimpleNamespace(**{**default, **entry}) for entry in entries]
    settings: Any = SimpleNamespace(
        mixture=SimpleNamespace(datasets=entries_, streaming=False, test_split_size=more.get("test_split_size")),
        run=SimpleNamespace(held_out=None, eval_dataset=None, format="auto", map=None, on_bad_row="error"),
        training=SimpleNamespace(
            eval_strategy=more.get("eval_strategy", "no"), seed=3, changes=SimpleNamespace(rewrite=None)
        ),
        script=SimpleNamespace(dataset_test_split="test"),
    )
    return open_sources(settings)


def write(path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return {"path": str(path)}


def test_files_of_a_mixture_may_have_other_columns(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", [RECORD] * 4)
    second = write(tmp_path / "b.jsonl", [{"query": "w1", "context": "w2", "response": "w3", "more": 1}] * 6)
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": None}}}]}
    third = write(tmp_path / "c.jsonl", [{"messages": [TURNS[0], call]}, {"messages": TURNS}])
    train = mixture(first, second, third).train
    items = list(train)
    assert [type(item) for item in items] == [Record] * 10 + [Conversation] * 2
    assert items[10].messages[1]["tool_calls"] == call["tool_calls"]
    assert len([file for reading in train.readings for file in reading.files]) == 3
    halves = mixture({**first, "fraction": 0.5}, {**second, "fraction": 0.5}).train
    assert len(list(halves)) == 8  # four of each: none is taken twice
    part = mixture({**first, "split": "train[:50%]"}).train
    assert len(list(part)) == 2


def test_a_mixture_holds_rows_out(tmp_path: Path) -> None:
    rows = [{"prompt": f"w{i}", "completion": "w3"} for i in range(20)]
    entry = write(tmp_path / "a.jsonl", rows)
    both = mixture(entry, test_split_size=0.25, eval_strategy="epoch")
    train, test = list(both.train), list(both.evaluation)
    assert (len(train), len(test)) == (15, 5)
    assert sorted([*train, *test], key=str) == sorted(rows, key=str)
    with pytest.raises(ConfigError, match="test_split_size"):
        list(mixture(entry, test_split_size=20, eval_strategy="epoch").train)


@pytest.mark.parametrize(
    ("row", "columns"),
    [({"text": "w1"}, "the columns text"), (RECORD, "records or messages"),
     ({"prompt": "w1", "completion": "w2"}, "")],
)  # fmt: skip
def test_what_cannot_go_together_names_files_and_columns(tmp_path: Path, row: dict[str, Any], columns: str) -> None:
    first = write(tmp_path / "a.jsonl", [{"prompt": "w1", "completion": "w3"}])
    second = write(tmp_path / "b.jsonl", [row])
    if not columns:
        assert len(list(mixture(first, second).train)) == 2
        return
    with pytest.raises(DataError, match=rf"a\.jsonl has the columns completion, prompt and .*b\.jsonl has {columns}"):
        mixture(first, second)
