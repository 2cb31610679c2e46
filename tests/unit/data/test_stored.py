"""Tables of training rows on disk: what they hold, and when an earlier one is found again."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from selfaug.common.errors import ConfigError, DataError, UserError
from selfaug.data import stored
from selfaug.data.encode import encode
from selfaug.data.fields import RowError, Where
from selfaug.data.prompts import Renderer
from selfaug.data.record import Conversation, Document, Item, Record
from selfaug.data.stored import Encoding, find_or_make, open_table, write_encoded
from selfaug.data.tokens import record_tokens, tokens_of_records
from tests.unit.data.chat import FAMILIES, tokenizer_of

LONG = "Once upon a time there was a little dog. " * 40


def items(count: int = 23) -> list[Item]:
    """Records, conversations, rows that are shortened and rows that do not fit, taking turns."""
    kinds = [
        lambda n: Record(f"Where is {n}?", (Document(f"It is in {n}."),), (f"{n}",), id=f"r{n}"),
        lambda n: Record("Where?", (Document(f"In {n}.", score=1.0), Document(LONG, score=0.5)), ("dog",)),
        lambda n: Record(LONG, (), (f"<|im_end|> {n}",)),
        lambda n: Conversation(({"role": "user", "content": f"Hi {n}"}, {"role": "assistant", "content": "Hello"})),
    ]
    return [kinds[n % len(kinds)](n) for n in range(count)]


@pytest.fixture
def encoding() -> Encoding:
    tokenizer = tokenizer_of(FAMILIES["chatml"])
    return Encoding(tokenizer, Renderer.for_tokenizer(tokenizer), 400, False, "skip", "error")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "selfaug"


def whole(encoding: Encoding) -> Any:
    settings = {"max_length": encoding.max_length, "on_lost_answer": encoding.on_lost_answer}
    return encode(items(), encoding.tokenizer, encoding.renderer, **settings)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_table_written_in_chunks_holds_the_rows_and_report_of_all_items(
    encoding: Encoding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setattr(stored, "_CHUNK", 4)
    done: list[int] = []
    report = write_encoded(tmp_path, iter(items()), encoding, processes, done.append)
    expected = whole(encoding)
    assert expected.report.left_out  # rows are left out, and others are shortened
    assert expected.report.shortened
    assert open_table(tmp_path).to_list() == expected.rows
    assert report.as_dict() == expected.report.as_dict()
    assert report.lines() == expected.report.lines()
    assert done == [4, 8, 12, 16, 20, 23]
    assert open_table(tmp_path).cache_files  # mapped, not held


def test_the_items_that_have_a_row_are_kept_for_methods_that_rewrite_them(encoding: Encoding, tmp_path: Path) -> None:
    write_encoded(tmp_path, items(), replace(encoding, as_items=True))
    found = open_table(tmp_path)
    assert found.column_names == [stored.ITEM]
    assert len(found) == len(whole(encoding).rows)


def test_a_mistake_in_another_process_names_the_row(encoding: Encoding, tmp_path: Path) -> None:
    bad = Conversation(({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "No", "weight": 0}))
    with pytest.raises(DataError, match=r"row 24: a conversation has flags"):
        write_encoded(tmp_path, [*items(), bad], encoding, 2)
    assert write_encoded(tmp_path, [*items(), bad], replace(encoding, on_bad_row="skip"), 2).rows == 24


def test_a_table_is_made_once_for_what_decides_it(encoding: Encoding, cache: Path) -> None:
    made: list[Path] = []

    def make(folder: Path) -> dict[str, Any]:
        made.append(folder)
        return {"rows": write_encoded(folder, items(), encoding).rows}

    folder, facts = find_or_make({"a": 1} | encoding.key(), make)
    assert find_or_make({"a": 1} | encoding.key(), make) == (folder, facts)
    assert len(made) == 1
    for other in (
        replace(encoding, max_length=399),
        replace(encoding, renderer=replace(encoding.renderer, system="Say it.")),
        replace(encoding, tokenizer=tokenizer_of(FAMILIES["llama3"])),
    ):
        assert find_or_make({"a": 1} | other.key(), make)[0] != folder
    assert len(made) == 4
    assert all(path.parent == cache for path in made)
    (folder / "facts.json").write_text("{", "utf-8")  # damaged: made anew
    assert find_or_make({"a": 1} | encoding.key(), make) == (folder, facts)
    assert len(open_table(folder)) == len(whole(encoding).rows)


def test_a_table_that_was_cut_off_is_made_anew(cache: Path) -> None:
    made: list[Path] = []

    def make(folder: Path) -> dict[str, Any]:
        made.append(folder)
        (folder / "rows.arrow").write_bytes(b"whole")
        return {"rows": 1}

    folder, facts = find_or_make({"a": 1}, make)
    assert find_or_make({"a": 1}, make) == (folder, facts) == (folder, {"rows": 1})
    assert len(made) == 1
    for damage in (lambda file: file.write_bytes(b"who"), Path.unlink):
        damage(folder / "rows.arrow")
        assert find_or_make({"a": 1}, make) == (folder, {"rows": 1})
        assert (folder / "rows.arrow").read_bytes() == b"whole"
    assert len(made) == 3


def test_what_fails_leaves_nothing_behind(cache: Path) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "rows.arrow").write_bytes(b"half of it")
        raise DataError("no", "no")

    with pytest.raises(DataError):
        find_or_make({}, fail)
    assert list(cache.iterdir()) == []

    def full(folder: Path) -> dict[str, Any]:
        raise OSError(28, "No space left on device")

    with pytest.raises(ConfigError, match=r"cannot be written: No space left") as caught:
        find_or_make({}, full)
    assert "HF_DATASETS_CACHE" in caught.value.hint


@pytest.mark.parametrize("name", FAMILIES)
def test_records_tokenised_together_get_the_tokens_of_each_alone(name: str) -> None:
    tokenizer = tokenizer_of(FAMILIES[name])
    renderer = Renderer.for_tokenizer(tokenizer)
    records = [item for item in items() if isinstance(item, Record)]
    together = tokens_of_records(renderer, tokenizer, records)
    assert [found[:2] for found in together if not isinstance(found, DataError)] == [
        record_tokens(renderer, tokenizer, record) for record in records
    ]
    for record, found in zip(records, together, strict=True):
        assert not isinstance(found, DataError)
        prompt = renderer.prompt_text(tokenizer, record)  # the tokenizer itself, asked for one text
        assert found.prompt == tokenizer(prompt, add_special_tokens=renderer.mode == "plain")["input_ids"]


@pytest.mark.parametrize(
    "error", [ConfigError("a", "b"), RowError(Where("f", 3), "answer", "a text", "3", "mend it")]
)  # fmt: skip
def test_errors_of_the_user_cross_processes(error: UserError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (again.message, again.hint, str(again)) == (error.message, error.hint, str(error))
    assert vars(again) == vars(error)
