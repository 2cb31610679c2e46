"""A client of OpenAI-compatible endpoints that retries after transient failures."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar
from urllib.parse import urlsplit

from selfaug.common.errors import ConfigError, UserError

__all__ = ["Endpoint", "EndpointError"]

_RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
_PATHS = ("/chat/completions", "/completions", "/embeddings")

Row = TypeVar("Row")
Found = TypeVar("Found")


class EndpointError(UserError):
    """The error of an endpoint that cannot be reached or refuses requests."""


class _TransientError(Exception):
    """A failure after which a retry may succeed."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True)
class Endpoint:
    """A server of a model.

    Args:
        url: URL up to ``/v1`` or to ``/chat/completions``.
        api_key: API key, sent as a bearer token and never written anywhere.
        timeout: Seconds for one reply.
        retries: Number of retries after time-outs, refused connections and transient server errors.
        first_wait: Seconds before the first retry; doubled each time, up to a minute, unless the server names a time.
        concurrency: Number of requests in flight at once.
        role: Name of the model's role in messages.
        settings: Prefix of the settings that describe the endpoint, for messages.
        error: Type of the errors raised.

    Raises:
        ConfigError: If the URL is not valid, or holds a user name or password.
    """

    url: str
    api_key: str | None = None
    timeout: float = 60.0
    retries: int = 4
    first_wait: float = 1.0
    concurrency: int = 4
    role: str = "model"
    settings: str = "generation"
    error: type[UserError] = EndpointError

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ConfigError(
                f"{self.settings}_url {self.url!r} is no http address", "give one such as http://localhost:8000/v1."
            )

        if "@" in parts.netloc:
            raise ConfigError(
                f"{self.settings}_url holds a user name or password, which settings and messages would repeat",
                f"give the address without it; the key is read from the variable that {self.settings}_key_env names.",
            )

    def address(self, path: str) -> str:
        """Return the URL of ``/chat/completions``, ``/completions`` or ``/embeddings``."""
        root = self.url.rstrip("/")
        for known in _PATHS:
            root = root.removesuffix(known)
        return root + path

    def each(
        self, rows: Sequence[Row], ask: Callable[[Row], Found], progress: Callable[[int], None] | None = None
    ) -> list[Found]:
        """Return ``ask(row)`` for every row, in their order; several run at a time, and the first error ends all."""
        done = 0
        lock = Lock()

        def one(row: Row) -> Found:
            nonlocal done
            found = ask(row)
            with lock:
                done += 1
                if progress is not None:
                    progress(done)
            return found

        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = [pool.submit(one, row) for row in rows]
            try:
                return [future.result() for future in futures]
            except BaseException:
                for future in futures:
                    future.cancel()  # spares an endpoint that is down the remaining requests
                raise

    def post(self, path: str, body: Mapping[str, Any]) -> bytes:
        """Post a JSON body, and return the raw reply.

        Raises:
            EndpointError: If the endpoint refuses, or does not answer after all tries; or of type ``error``.
        """
        wait = self.first_wait
        for left in range(self.retries, -1, -1):
            try:
                return self._post(path, body)
            except _TransientError as error:
                if not left:
                    raise self.error(
                        f"the {self.role} at {self.address(path)} gave no answer in {self.retries + 1} tries: {error}",
                        "start it or mend the address, then run the same command again: what it answered so far is "
                        "kept.",
                    ) from error
                time.sleep(min(error.wait if error.wait is not None else wait, 60.0))
                wait *= 2
        raise AssertionError("unreachable")

    def _post(self, path: str, body: Mapping[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        request = urllib.request.Request(self.address(path), json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                raw: bytes = reply.read()
                return raw
        except urllib.error.HTTPError as error:
            detail = error.read(500).decode("utf-8", "replace").strip()
            if error.code in _RETRIED:
                after = error.headers.get("Retry-After", "")
                wait = float(after) if after.isdigit() else None
                raise _TransientError(f"HTTP {error.code} {detail[:200]}", wait) from None
            raise self.error(
                f"the {self.role} at {self.address(path)} refuses: HTTP {error.code} {detail[:200]}",
                f"check --{self.settings}_url, --{self.settings}_model and the API key in the environment.",
            ) from None
        except (OSError, http.client.HTTPException) as error:  # refused, unknown host, time-out, broken off
            raise _TransientError(str(getattr(error, "reason", error)) or type(error).__name__) from None
