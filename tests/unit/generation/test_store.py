"""Is what was written kept whatever happens, and found again for the same request and writer alone?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfaug.data.prompts import Renderer
from selfaug.generation.requests import Reply, Request
from selfaug.generation.store import Store
from selfaug.generation.writer import Writer
from tests.chatting import chat_tokenizer

ASKED = [Request(text=f"t{i}", temperature=1.0, seed=i) for i in range(5)]


def test_replies_survive_a_torn_line(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep")
    store.add([("a", Reply("one\ntwo \u2028 é", True)), ("b", Reply("", False))])
    whole = store.path.read_bytes()
    store.path.write_bytes(whole + b'{"key": "c", "text": "torn')
    again = Store(tmp_path / "deep")
    assert again.known == {"a": Reply("one\ntwo \u2028 é", True), "b": Reply("", False)}
    again.add([("d", Reply("four", True))])
    assert Store(tmp_path / "deep").known.keys() == {"a", "b", "d"}
    assert again.path.read_bytes().startswith(whole)
    # Another rank reads it too, and writes a file of its own.
    other = Store(tmp_path / "deep", rank=1)
    assert other.known.keys() == {"a", "b", "d"}
    other.add([("e", Reply("five", True))])
    assert Store(tmp_path / "deep").known.keys() == {"a", "b", "d", "e"}


def test_a_key_is_that_of_all_that_decides_the_reply() -> None:
    request, made_by = ASKED[0], {"base": "x", "dtype": "float32"}
    key = request.key(made_by)
    assert request.key({"dtype": "float32", "base": "x"}) == key
    changes: list[dict[str, Any]] = [
        {"text": "other"}, {"stop": "x"}, {"length": 3}, {"temperature": 0.5}, {"top_p": 0.9}, {"seed": 9},
        {"text": "", "messages": ({"role": "user", "content": "t0"},)},
    ]  # fmt: skip
    keys = {replace(request, **change).key(made_by) for change in changes}
    keys |= {request.key({**made_by, "base": "y"}), request.key({**made_by, "dtype": "bfloat16"})}
    assert len(keys | {key}) == len(changes) + 3
    # Without a temperature nothing is drawn.
    cold = replace(request, temperature=0.0)
    assert replace(cold, seed=5, top_p=0.5).key(made_by) == cold.key(made_by)


class Counted:
    """Says what it was asked, and stops after some replies."""

    def __init__(self, most: int = 100) -> None:
        self.asked: list[str] = []
        self.most = most

    def ask(self, requests: Sequence[Request]) -> Iterator[dict[int, Reply]]:
        for i, request in enumerate(requests):
            if len(self.asked) == self.most:
                raise KeyboardInterrupt
            self.asked.append(request.text)
            yield {i: Reply(request.text.upper(), True)}


def writer(source: Counted, folder: Path, rank: int = 0, ranks: int = 1, **made_by: str) -> Writer:
    tokenizer = chat_tokenizer()
    return Writer(
        source, Store(folder, rank), {"base": "x", **made_by}, tokenizer=tokenizer,
        renderer=Renderer.for_tokenizer(tokenizer), max_length=64, length=8, seed=0, rank=rank, ranks=ranks,
    )  # fmt: skip


def test_what_was_written_is_never_asked_again(tmp_path: Path) -> None:
    first = Counted(most=3)
    with pytest.raises(KeyboardInterrupt):
        writer(first, tmp_path).write(ASKED, "texts")
    assert first.asked == ["t0", "t1", "t2"]
    second = Counted()
    writing = writer(second, tmp_path)
    assert [reply.text for reply in writing.write([*ASKED, ASKED[1]], "texts")] == ["T0", "T1", "T2", "T3", "T4", "T1"]
    assert second.asked == ["t3", "t4"]
    assert writing.asked == 2
    third = Counted()
    writer(third, tmp_path).write(ASKED, "texts")
    assert third.asked == []
    writer(third, tmp_path, base="another").write(ASKED, "texts")
    assert third.asked == ["t0", "t1", "t2", "t3", "t4"]


def test_ranks_share_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer(Counted(), tmp_path).write(ASKED[:1], "texts")
    asked = []
    for rank in range(2):
        own = Counted()
        writing = writer(own, tmp_path / "nowhere" if rank else tmp_path, rank, 2)
        # What the other rank brings to the gathering is what this one lacks.
        monkeypatch.setattr(
            "selfaug.generation.writer.gather_object",
            lambda mine, writing=writing: [
                *mine,
                *((r.key(writing._made_by), Reply(r.text.upper(), True)) for r in ASKED),
            ],
        )
        writing._store.known.update({ASKED[0].key(writing._made_by): Reply("T0", True)})
        assert [reply.text for reply in writing.write(ASKED, "texts")] == ["T0", "T1", "T2", "T3", "T4"]
        asked.append(own.asked)
        monkeypatch.undo()
    assert asked == [["t1", "t3"], ["t2", "t4"]]
