"""A judge of answers: a language model behind an OpenAI-compatible endpoint that gives verdicts on correctness.

Rules decide abstentions and exact matches without a request. Replies are kept on disk under a hash of model and
prompt. An unreadable reply is counted and shown, never guessed.
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
    """The error of a judge that cannot be reached or refuses requests."""


def parse_verdict(reply: str) -> Verdict | None:
    """Return the verdict in a reply: in a JSON object with ``verdict``, or as a bare word; else ``None``.

    JSON objects that contradict each other give no verdict.
    """
    bare = reply.strip().strip("\"'.` ").lower()
    if bare in _VERDICTS:
        return bare
    verdicts = set()
    for text in _OBJECT.findall(reply):
        try:
            value = json.loads(text).get("verdict")
        except ValueError:
            continue
        verdicts.add(value.strip().lower() if isinstance(value, str) else None)
    if len(verdicts) != 1:
        return None
    verdict = verdicts.pop()
    return verdict if verdict in _VERDICTS else None


@dataclass
class Judge:
    """A judge with its cache and counts of its replies.

    Args:
        url: URL of the endpoint, up to ``/v1`` or to ``/chat/completions``.
        model: Name of the model at the endpoint.
        cache: JSONL file of replies; ``None`` for no cache.
        api_key: API key, sent as a bearer token and never written anywhere.
        timeout: Seconds for one reply.
        retries: Number of retries of a request after time-outs, refused connections and transient server errors.
        first_wait: Seconds before the first retry; doubled each time, up to a minute, unless the server names a time.
        concurrency: Number of requests in flight at once.
        forms: Forms of abstention that need no judge; ``None`` for the package's own.
        asked: Number of requests sent.
        from_cache: Number of replies taken from the cache.
        unparsed: Replies without a readable verdict.

    Raises:
        ConfigError: If the URL is not valid.
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
        """Return a verdict for each (question, accepted answers, response); ``None`` where the reply is unreadable.

        Raises:
            JudgeError: If the endpoint refuses, or does not answer after all tries. Earlier replies are kept.
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
        # An unreadable reply may be a transient fault, so it is not cached.
        if self._lines is not None and parse_verdict(reply) is not None:
            self._lines.add([{"key": key, "model": self.model, "reply": reply}])


def _content(raw: bytes) -> str:
    """Return the text of a chat completion, or for another reply its raw text, to be shown as unreadable."""
    try:
        body: Any = json.loads(raw)
        return str(body["choices"][0]["message"]["content"])
    except (ValueError, KeyError, IndexError, TypeError):
        return raw[:500].decode("utf-8", "replace")
