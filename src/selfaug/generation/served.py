"""Generation by a model behind an OpenAI-compatible endpoint (a vLLM server, say) in place of the loaded base."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from selfaug.common.endpoint import Endpoint, EndpointError
from selfaug.generation.requests import Reply, Request

__all__ = ["ServedModel"]

_AT_ONCE = 32


class ServedModel:
    """A source of replies from a served model; ``messages`` go to ``/chat/completions``, ``text`` to ``/completions``.

    Args:
        endpoint: Endpoint of the server.
        name: Name of the model at the endpoint.
        variables: Further variables of its chat template, as vLLM takes them.
    """

    def __init__(self, endpoint: Endpoint, name: str, variables: Mapping[str, Any] | None = None) -> None:
        self.endpoint, self.name, self.variables = endpoint, name, dict(variables or {})

    def ask(self, requests: Sequence[Request]) -> Iterator[dict[int, Reply]]:
        """Yield replies by the indices of their requests, some at a time.

        Raises:
            EndpointError: If the endpoint refuses, sends an invalid reply, or does not answer after all tries. Earlier
                replies have been yielded.
        """
        broken: list[EndpointError] = []

        def one(request: Request) -> Reply | None:
            if broken:  # spares the remaining requests
                return None
            try:
                return self._one(request)
            except EndpointError as error:
                broken.append(error)
                return None

        for start in range(0, len(requests), _AT_ONCE):
            found = self.endpoint.each(requests[start : start + _AT_ONCE], one)
            yield {i: reply for i, reply in enumerate(found, start=start) if reply is not None}
            if broken:
                raise broken[0]

    def _one(self, request: Request) -> Reply:
        body: dict[str, Any] = {
            "model": self.name,
            "max_tokens": request.length,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
        }
        if request.stop:
            body["stop"] = [request.stop]
        if request.text:
            # The text contains BOS already where the template has it.
            body |= {"prompt": request.text, "add_special_tokens": False}
            return self._reply("/completions", body)
        if self.variables:
            body["chat_template_kwargs"] = self.variables
        return self._reply("/chat/completions", body | {"messages": [dict(message) for message in request.messages]})

    def _reply(self, path: str, body: dict[str, Any]) -> Reply:
        raw = self.endpoint.post(path, body)
        try:
            choice = json.loads(raw)["choices"][0]
            text = choice["message"]["content"] if "messages" in body else choice["text"]
            return Reply(str(text or "").strip(), choice.get("finish_reason") == "stop")
        except (ValueError, KeyError, IndexError, TypeError):
            raise EndpointError(
                f"the model at {self.endpoint.address(path)} gave something that is no completion: "
                f"{raw[:200].decode('utf-8', 'replace')!r}",
                "check --generation_url: it must speak OpenAI's protocol, as vLLM's server does.",
            ) from None
