"""Does a served model write in the base's place: what is sent, what is read, and what is an error?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from selfaug.common.endpoint import Endpoint, EndpointError
from selfaug.generation.requests import Reply, Request
from selfaug.generation.served import ServedModel
from tests.server import Server, completed


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


def served(server: Server, **more: Any) -> ServedModel:
    return ServedModel(Endpoint(server.url, **{"retries": 1, "first_wait": 0.01, "timeout": 5.0, **more}), "base-1")


def all_of(model: ServedModel, requests: list[Request]) -> list[Reply]:
    found = {i: reply for batch in model.ask(requests) for i, reply in batch.items()}
    return [found[i] for i in range(len(requests))]


def test_conversations_and_texts_go_to_their_own_addresses(server: Server) -> None:
    server.reply = lambda body, n: (200, completed(" words \n", chat="messages" in body))
    messages = ({"role": "user", "content": "Who?"},)
    model = served(server, api_key="k-1")
    asked = [Request(messages, length=9), Request(text="<s>user", stop="<e>", temperature=0.5, top_p=0.9, seed=7)]
    assert all_of(model, asked) == [Reply("words", True)] * 2
    chat, text = sorted(zip(server.asked, server.headers, strict=True), key=lambda pair: "prompt" in pair[0])
    assert (chat[1]["path"], text[1]["path"]) == ("/v1/chat/completions", "/v1/completions")
    assert chat[0]["messages"] == [{"role": "user", "content": "Who?"}]
    assert (chat[0]["max_tokens"], chat[0]["temperature"], "stop" in chat[0]) == (9, 0.0, False)
    assert (text[0]["prompt"], text[0]["stop"], text[0]["add_special_tokens"]) == ("<s>user", ["<e>"], False)
    assert (text[0]["temperature"], text[0]["top_p"], text[0]["seed"]) == (0.5, 0.9, 7)
    assert {body["model"] for body in server.asked} == {"base-1"}
    assert chat[1]["Authorization"] == "Bearer k-1"
    assert "chat_template_kwargs" not in chat[0]
    named = ServedModel(model.endpoint, "base-1", {"enable_thinking": False})
    all_of(named, asked)
    sent = [body.get("chat_template_kwargs") for body in server.asked[2:]]
    assert sorted(sent, key=str) == [None, {"enable_thinking": False}]


def test_what_was_cut_has_not_ended(server: Server) -> None:
    server.reply = lambda body, n: (200, completed("cut off", finish="length"))
    assert all_of(served(server), [Request(({"role": "user", "content": "x"},))]) == [Reply("cut off", False)]


def test_many_come_back_in_order_some_at_a_time(server: Server) -> None:
    server.reply = lambda body, n: (200, completed(f"re {body['prompt']}", chat=False))
    asked = [Request(text=f"t{i}") for i in range(70)]
    batches = list(served(server, concurrency=8).ask(asked))
    assert [len(batch) for batch in batches] == [32, 32, 6]
    assert [batch[i].text for batch in batches for i in sorted(batch)] == [f"re t{i}" for i in range(70)]


@pytest.mark.parametrize("raw", [b"<html>", b"{}", b'{"choices": []}', b'{"choices": [{"message": null}]}'])
def test_what_is_no_completion_is_an_error(raw: bytes, server: Server) -> None:
    server.reply = lambda body, n: (200, raw)
    with pytest.raises(EndpointError, match="no completion"):
        all_of(served(server), [Request(({"role": "user", "content": "x"},))])


def test_what_was_said_before_a_fault_is_not_lost(server: Server) -> None:
    server.reply = lambda body, n: (200, completed("re", chat=False)) if n <= 40 else (404, b"gone")
    found: dict[int, Reply] = {}

    def collect() -> None:
        for batch in served(server, concurrency=1).ask([Request(text=f"t{i}") for i in range(70)]):
            found.update(batch)

    with pytest.raises(EndpointError, match="gone"):
        collect()
    assert list(found) == list(range(40))
    assert len(server.asked) == 41


def test_one_that_refuses_or_stays_broken_is_an_error(server: Server) -> None:
    server.reply = lambda body, n: (404, b"no such model")
    with pytest.raises(EndpointError, match="refuses: HTTP 404 no such model") as refused:
        all_of(served(server, api_key="k-secret"), [Request(text="x")])
    assert "generation_model" in refused.value.hint
    assert "k-secret" not in str(refused.value)
    server.reply = lambda body, n: (503, b"starting")
    with pytest.raises(EndpointError, match="2 tries: HTTP 503"):
        all_of(served(server), [Request(text="x")])
