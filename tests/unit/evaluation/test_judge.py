"""Does the judge's client live with every endpoint that is good, slow, failing, babbling or down?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from selfaug.common.errors import ConfigError
from selfaug.evaluation.judge import Judge, JudgeError, parse_verdict
from tests.server import Server, said


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


def judge(url: str, **more: Any) -> Judge:
    return Judge(url, "judge-1", **{"retries": 2, "first_wait": 0.01, "timeout": 5.0, "concurrency": 1, **more})


ROWS = [
    ("Capital of France?", ["Paris"], "It is Paris, on the Seine."),
    ("Capital of Italy?", ["Rome"], "Milan"),
    ("Capital of Spain?", ["Madrid"], "the madrid!"),
    ("Capital of Chad?", ["N'Djamena"], "I don't know"),
]


def test_only_what_rules_cannot_settle_is_asked(server: Server) -> None:
    server.reply = lambda body, n: (200, said('{"verdict": "right"}' if "Seine" in str(body) else "Wrong."))
    asking = judge(server.url, api_key="k-1")
    assert asking.verdicts(ROWS) == ["right", "wrong", "right", "missing"]
    assert asking.asked == 2
    assert [body["temperature"] for body in server.asked] == [0, 0]
    assert server.asked[0]["model"] == "judge-1"
    assert "Capital of France?" in server.asked[0]["messages"][0]["content"]
    assert server.headers[0]["Authorization"] == "Bearer k-1"
    assert server.headers[0]["path"] == "/v1/chat/completions"


def test_verdicts_are_kept_on_disk(server: Server, tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "judge.jsonl"
    first = judge(server.url, cache=cache, api_key="k-secret")
    assert first.verdicts(ROWS[:2]) == ["wrong", "wrong"]
    assert "k-secret" not in cache.read_text(encoding="utf-8")
    with cache.open("a", encoding="utf-8") as file:
        file.write('{"key": "sha256:torn')  # interrupted while writing
    again = judge(server.url, cache=cache)
    assert again.verdicts(ROWS[:2]) == ["wrong", "wrong"]
    assert (again.asked, again.from_cache, len(server.asked)) == (0, 2, 2)
    other = judge(server.url, cache=cache)
    other.model = "judge-2"
    other.verdicts(ROWS[:1])
    assert other.asked == 1  # another judge's verdict is not this one's


def test_passing_faults_are_tried_again(server: Server) -> None:
    def reply(body: dict[str, Any], n: int) -> tuple[int, bytes]:
        return (500, b"starting") if n == 1 else (429, b"slow down") if n == 2 else (200, said("right"))

    server.reply = reply
    assert judge(server.url).verdicts(ROWS[1:2]) == ["right"]
    assert len(server.asked) == 3


def test_one_that_stays_broken_is_an_error_that_keeps_what_was_said(server: Server, tmp_path: Path) -> None:
    server.reply = lambda body, n: (200, said("wrong")) if n == 1 else (503, b"out of order")
    cache = tmp_path / "judge.jsonl"
    with pytest.raises(JudgeError, match="3 tries: HTTP 503 out of order"):
        judge(server.url, cache=cache).verdicts(ROWS[:2])
    assert len(server.asked) == 4
    assert len(cache.read_text(encoding="utf-8").splitlines()) == 1


def test_a_refusal_is_not_tried_again(server: Server) -> None:
    server.reply = lambda body, n: (401, b"no such key")
    with pytest.raises(JudgeError, match="HTTP 401 no such key") as caught:
        judge(server.url, api_key="k-secret").verdicts(ROWS[:1])
    assert len(server.asked) == 1
    assert "k-secret" not in str(caught.value)


def test_a_slow_one_times_out(server: Server) -> None:
    def reply(body: dict[str, Any], n: int) -> tuple[int, bytes]:
        if n <= 2:
            server.release.wait(30)  # ended by the fixture at the latest
        return 200, said("wrong")

    server.reply = reply
    with pytest.raises(JudgeError, match="timed out"):
        judge(server.url, timeout=0.2, retries=1).verdicts(ROWS[:1])
    assert len(server.asked) == 2
    assert judge(server.url, timeout=5.0).verdicts(ROWS[:1]) == ["wrong"]


def test_one_that_is_down_is_an_error() -> None:
    gone = Server()
    gone.close()
    with pytest.raises(JudgeError, match="refused"):
        judge(gone.url).verdicts(ROWS[:1])


def test_garbage_is_counted_and_never_guessed(server: Server, tmp_path: Path) -> None:
    replies = [
        said("The answer seems right to me, or wrong"),
        b"<html>not json</html>",
        b'{"choices": []}',
        said('{"verdict": "right"} no wait {"verdict": "wrong"}'),
        said('{"verdict": "excellent"}'),
        said(""),
        said('Because it says so: {"verdict": "Right"}'),
    ]
    server.reply = lambda body, n: (200, replies[n - 1])
    rows = [(f"Question {i}?", ["yes it is"], f"answer {i}") for i in range(len(replies))]
    cache = tmp_path / "judge.jsonl"
    asking = judge(server.url, cache=cache)
    assert asking.verdicts(rows) == [None] * 6 + ["right"]
    assert len(asking.unparsed) == 6
    assert "<html>not json</html>" in asking.unparsed
    # What could not be read is asked again: it may have been a passing fault.
    assert len(cache.read_text(encoding="utf-8").splitlines()) == 1


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("right", "right"), (" Missing.\n", "missing"), ('"wrong"', "wrong"), ('{"verdict":"missing"}', "missing"),
        ('```json\n{"verdict": "wrong"}\n```', "wrong"), ("not right", None), ('{"verdict": 1}', None),
        ('{"verdict": "right"', None), ("[]", None),
        ('{"verdict": "right"} {"verdict": "right"}', "right"), ('{"score": 1}', None),
    ],
)  # fmt: skip
def test_replies(reply: str, verdict: str | None) -> None:
    assert parse_verdict(reply) == verdict


def test_many_at_once_come_back_in_order(server: Server) -> None:
    server.reply = lambda body, n: (200, said("right" if "even" in str(body) else "wrong"))
    rows = [(f"Question {i} {'even' if i % 2 == 0 else 'odd'}?", ["x y z"], f"answer {i}") for i in range(40)]
    counted: list[int] = []
    verdicts = judge(server.url, concurrency=8).verdicts(rows, progress=counted.append)
    assert verdicts == ["right", "wrong"] * 20
    assert counted == list(range(1, 41))


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "http://"])
def test_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="no http address"):
        judge(url)
