"""Is every token of a text scored exactly once, whatever the context, and is the number that of dense logits?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selfaug.common.errors import DataError
from selfaug.evaluation.text import read_texts, text_nll, windows
from tests.models import tiny, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
texts = st.lists(st.lists(st.integers(3, 96), max_size=40), min_size=1, max_size=5)


@given(texts, st.integers(2, 12))
def test_each_token_but_the_first_is_scored_once(ids: list[list[int]], context: int) -> None:
    pieces = windows([" ".join(f"w{i}" for i in row) for row in ids], TOKENIZER, context)
    assert all(1 <= piece.context < len(piece.ids) <= context for piece in pieces)
    for number, row in enumerate(ids):
        scored = [token for piece in pieces if piece.text == number for token in piece.ids[piece.context :]]
        assert scored == row[1:]


def test_a_long_text_keeps_half_a_window_of_context() -> None:
    pieces = windows([" ".join(f"w{3 + i % 90}" for i in range(50))], TOKENIZER, 10)
    assert len(pieces) > 3
    assert all(piece.context == 5 for piece in pieces[1:])


def test_nats_are_those_of_dense_logits() -> None:
    model = tiny("llama")
    rows = ["w5 w6 w7 w8 w9", "w10", "w11 w12"]
    pieces = windows(rows, TOKENIZER, None)
    found = text_nll(model, pieces, batch_size=2)
    assert len(found) == 2  # one token alone has nothing to predict it
    for row, (nats, count) in zip([rows[0], rows[2]], found, strict=True):
        ids = torch.tensor(TOKENIZER(row)["input_ids"])
        with torch.no_grad():
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
        assert count == len(ids) - 1
        assert nats == pytest.approx(float(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")))


def test_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo", encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(["one", " ", "two"]), encoding="utf-8")
    (tmp_path / "c.jsonl").write_text('{"text": "one"}\n\n"two"\n', encoding="utf-8")
    assert read_texts(tmp_path / "a.txt") == ["one\n\ntwo"]
    assert read_texts(tmp_path / "b.json") == ["one", "two"]
    assert read_texts(tmp_path / "c.jsonl") == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    [
        ("x.txt", b"\xff\xfe\x00", "cannot be read"),
        ("x.txt", b" \n", "holds no text"),
        ("x.json", b"{", "line 1, cannot be read: it is no JSON"),
        ("x.json", b'{"a": 1}', "something else than texts"),
        ("x.jsonl", b'{"body": "one"}', "something else than texts"),
        ("x.jsonl", b'{"text": "one"}\n{"text": "\\ud800"}', "text 2 holds half of a surrogate pair"),
    ],
)
def test_bad_files_are_told(tmp_path: Path, name: str, raw: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=said):
        read_texts(tmp_path / name)


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "stories.txt").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match=r"Did you mean 'stories.txt'\?"):
        read_texts(tmp_path / "storys.txt")
