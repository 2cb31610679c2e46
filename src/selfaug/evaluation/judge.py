"""The correctness of answers by the verdict of a language model behind an OpenAI-compatible endpoint.

What rules can settle (no answer, an exact match) is not asked. Verdicts are kept on disk by the hash of model and
prompt. One that cannot be read is counted and shown, never guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from selfaug.common.endpoint import Endpoint
from selfaug.common.errors import UserError
from selfaug.common.fingerprint import text_hash
from selfaug.common.store import Lines
from selfaug.data.forms import Forms
from selfaug.data.metrics import Verdict, abstains, answer_match

__all__ = ["Judge", "JudgeError", "parse_verdict"]

PROMPT = """You judge an answer to a question. The reference answers are correct; others may be correct too if they \
say the same.

Question: {question}
Reference answers: {accepted}
Answer to judge: {response}

Reply with one JSON object and nothing else:
{{"verdict": "right"}} if the answer says what a reference answer says and nothing that contradicts it,
{{"verdict": "missing"}} if it gives no answer, says that it does not know, or asks back,
{{"verdict": "wrong"}} otherwise."""
_NO_REFERENCE = "(none: the question has no answer)"
_OBJECT = re.compile(r"\{[^{}]*\}")
_VERDICTS: tuple[Verdict, ...] = ("right", "missing", "wrong")


class JudgeError(UserError):
    """The judge gives no verdicts at all."""


def parse_verdict(reply: str) -> Verdict | None:
    """The verdict in a reply: its only JSON object with ``verdict``, or the bare word; ``None`` for anything else.

    Two objects that contradict each other are no verdict.
    """
    bare = reply.strip().strip("\"'.` ").lower()
    if bare in _VERDICTS:
        return bare
    found = set()
    for text in _OBJECT.findall(reply):
        try:
            value = json.loads(text).get("verdict")
        except ValueError:
            continue
        found.add(value.strip().lower() if isinstance(value, str) else None)
    if len(found) != 1:
        return None
    verdict = found.pop()
    return verdict if verdict in _VERDICTS else None


@dataclass
class Judge:
    """A judge, its cache, and what came of asking it.

    Args:
        url: Of the endpoint: up to ``/v1`` or to ``/chat/completions``.
        model: Its name there.
        cache: JSONL file of verdicts; ``None`` for no cache.
        api_key: Sent as a bearer token; never written anywhere.
        timeout: Seconds for one reply.
        retries: Further tries of a question after time-outs, refused connections and the server's passing errors.
        first_wait: Seconds before the second try; doubled each time, up to a minute, unless the server says how long.
        concurrency: Questions on their way at once.
        forms: The forms of abstention that need no judge; ``None`` for the package's own.

    Raises:
        ConfigError: If the URL is none.
    """

    url: str
    model: str
    cache: Path | None = None
    api_key: str | None = None
    timeout: float = 60.0
    retries: int = 4
    first_wait: float = 1.0
    concurrency: int = 4
    forms: Forms | None = None
    asked: int = 0
    from_cache: int = 0
    unparsed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._endpoint = Endpoint(
            self.url, self.api_key, self.timeout, self.retries, self.first_wait, self.concurrency,
            role="judge", settings="judge", error=JudgeError,
        )  # fmt: skip
        self._lock = Lock()
        self._lines = None if self.cache is None else Lines(self.cache)
        rows = {} if self._lines is None else self._lines.rows
        self._known = {key: str(row["reply"]) for key, row in rows.items() if "reply" in row}

    def verdicts(
        self,
        rows: Sequence[tuple[str, Sequence[str], str]],
        abstention: str = "",
        progress: Callable[[int], None] | None = None,
    ) -> list[Verdict | None]:
        """A verdict for each (question, accepted answers, response); ``None`` where the reply could not be read.

        Raises:
            JudgeError: If the endpoint refuses, or does not answer after all tries. What it said before is kept.
            DiskError: If the cache cannot be written.
        """
        return self._endpoint.each(rows, lambda row: self._verdict(*row, abstention), progress)

    def _verdict(self, question: str, accepted: Sequence[str], response: str, abstention: str) -> Verdict | None:
        if accepted and answer_match(response, accepted):
            return "right"
        if abstains(response, abstention, self.forms):
            return "missing"
        listed = "; ".join(accepted) if accepted else _NO_REFERENCE
        prompt = PROMPT.format(question=question, accepted=listed, response=response)
        key = str(text_hash(f"{self.model}\0{prompt}"))
        with self._lock:
            reply = self._known.get(key)
            if reply is not None:
                self.from_cache += 1
        if reply is None:
            reply = self._ask(prompt)
            with self._lock:
                self.asked += 1
                self._keep(key, reply)
        verdict = parse_verdict(reply)
        if verdict is None:
            with self._lock:
                self.unparsed.append(reply)
        return verdict

    def _ask(self, prompt: str) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": 256,
        }
        return _content(self._endpoint.post("/chat/completions", body))

    def _keep(self, key: str, reply: str) -> None:
        self._known[key] = reply
        # A reply that cannot be read may be a passing fault: it is asked for again next time.
        if self._lines is not None and parse_verdict(reply) is not None:
            self._lines.add([{"key": key, "model": self.model, "reply": reply}])


def _content(raw: bytes) -> str:
    """The text of a chat completion, or the raw reply where it is none: then it cannot be read, and is shown so."""
    try:
        body: Any = json.loads(raw)
        return str(body["choices"][0]["message"]["content"])
    except (ValueError, KeyError, IndexError, TypeError):
        return raw[:500].decode("utf-8", "replace")
