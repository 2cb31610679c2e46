"""An HTTP server that answers as a test says, for clients of OpenAI-compatible endpoints."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Server", "completed", "said"]

Reply = Callable[[dict[str, Any], int], tuple[int, bytes]]


class Server:
    """Answers with ``reply(request body, number of the request)``; keeps what it was asked."""

    def __init__(self) -> None:
        self.reply: Reply = lambda body, n: (200, said('{"verdict": "wrong"}'))
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.release = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append(body)
                outer.headers.append({**self.headers, "path": self.path})
                status, raw = outer.reply(body, len(outer.asked))
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                pass  # a client that gave up waiting

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self.http.shutdown()
        self.http.server_close()


def said(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


def completed(text: str, *, finish: str = "stop", chat: bool = True) -> bytes:
    """A completion with what ended it."""
    body = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    return json.dumps({"choices": [{**body, "finish_reason": finish}]}).encode()
