"""Requests to a model and its replies, and the key by which equal requests are recognised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from selfaug.common.store import key_of

__all__ = ["Reply", "Request"]


@dataclass(frozen=True)
class Request:
    """One text to be generated.

    Args:
        messages: Conversation that the model continues as the assistant; empty where ``text`` is given.
        text: Text that the model continues as it stands, control tokens included.
        stop: Text that ends the reply besides the model's own end of turn; ``""`` for none.
        length: Longest reply in tokens.
        temperature: Temperature of the draws; 0 for the likeliest tokens.
        top_p: Share of the probability that is drawn from, in (0, 1].
        seed: Seed of the draws.
    """

    messages: tuple[Mapping[str, str], ...] = ()
    text: str = ""
    stop: str = ""
    length: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def key(self, made_by: Mapping[str, Any]) -> str:
        """Return the hash of the request and of ``made_by``, the facts about the model that determine the reply."""
        body = asdict(self)
        if not self.temperature:  # nothing is drawn
            body["seed"] = body["top_p"] = None
        return key_of({"made_by": dict(made_by), "request": body})


@dataclass(frozen=True)
class Reply:
    """One reply of a model.

    Args:
        text: Text of the reply, without the stop text.
        ended: Whether the model ended the reply itself; otherwise it was cut, or there was no room for it.
    """

    text: str
    ended: bool
