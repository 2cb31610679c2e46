"""Requests to a model and its replies, and the key by which equal requests are recognised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from selfaug.common.store import key_of

__all__ = ["Reply", "Request"]


@dataclass(frozen=True)
class Request:
    """One text that a model is to write.

    Args:
        messages: A conversation that it continues as the assistant; empty where ``text`` is given.
        text: A text that it continues as it stands, control tokens included.
        stop: What ends the reply besides the model's own end of turn; ``""`` for nothing.
        length: Longest reply in tokens.
        temperature: 0 takes the likeliest token.
        top_p: Share of the probability that is drawn from, in (0, 1].
        seed: Of the draws.
    """

    messages: tuple[Mapping[str, str], ...] = ()
    text: str = ""
    stop: str = ""
    length: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def key(self, made_by: Mapping[str, Any]) -> str:
        """Hash of the request and of who answers it: the same key, the same reply."""
        body = asdict(self)
        if not self.temperature:  # nothing is drawn
            body["seed"] = body["top_p"] = None
        return key_of({"made_by": dict(made_by), "request": body})


@dataclass(frozen=True)
class Reply:
    """What was written.

    Args:
        text: Without what ended it.
        ended: Whether the model ended it itself; else it was cut, or there was no room for it.
    """

    text: str
    ended: bool
