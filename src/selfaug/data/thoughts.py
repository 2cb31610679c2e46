"""Thoughts (``<think>…</think>``): splits them from answers, and continues prompts that open one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["FIELDS", "Answer", "after_opening", "in_fields", "is_closed", "split_thought"]

FIELDS = ("reasoning_content", "reasoning", "thinking", "tool_plan")
"""Message fields that hold thoughts; transformers copies the first three into each other."""

_PAIRS = {"<think>": "</think>", "<thinking>": "</thinking>", "[THINK]": "[/THINK]"}
_OPEN = re.compile("|".join(re.escape(tag) for tag in _PAIRS))
_CLOSE = re.compile("|".join(re.escape(tag) for tag in _PAIRS.values()))
_CLOSED = re.compile("|".join(rf"\s*{re.escape(a)}\s*{re.escape(b)}\s*" for a, b in _PAIRS.items()))


class Answer(NamedTuple):
    """The parts of an answer, which joined give it back; without a thought everything is in ``words``.

    Args:
        before: The words before the thought.
        opening: The opening tag; empty where the prompt wrote it.
        thought: The words between the tags.
        closing: The closing tag.
        words: The words after the thought.
    """

    before: str
    opening: str
    thought: str
    closing: str
    words: str


def split_thought(text: str) -> Answer:
    """Split ``text`` at the first opening and the last closing tag of a thought."""
    closings = list(_CLOSE.finditer(text))
    if not closings:
        return Answer("", "", "", "", text)
    closing = closings[-1]
    opening = _OPEN.search(text, 0, closing.start())
    start, inside = opening.span() if opening else (0, 0)
    return Answer(
        text[:start], text[start:inside], text[inside : closing.start()], closing.group(), text[closing.end() :]
    )


def in_fields(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return the message with a thought at the beginning of an assistant's content moved to ``reasoning_content``."""
    content = message.get("content")
    if message.get("role") != "assistant" or not isinstance(content, str) or any(message.get(key) for key in FIELDS):
        return dict(message)
    parts = split_thought(content)
    if not parts.closing or parts.before.strip() or not parts.thought.strip():
        return dict(message)
    return {**message, FIELDS[0]: parts.thought.strip("\n"), "content": parts.words.lstrip("\n")}


def is_closed(text: str) -> bool:
    """Tell whether ``text`` is just one empty thought, opened and closed."""
    return _CLOSED.fullmatch(text) is not None


def after_opening(opened: str, rest: str, thought: str) -> str | None:
    """Return what a model writes after ``opened``, or ``None`` where that is unknown.

    A thought that the prompt opens is closed in every answer: after the answer's own thought, or at once if it has
    none (``<think>``, a line break and ``</think>``, as model families write an empty thought).

    Args:
        opened: End of the generation prompt, which the template does not write in the finished turn.
        rest: Finished turn from that place on, with its end.
        thought: Thought of the answer, which the template may have left out of ``rest``.
    """
    tag = opened.strip()
    if not tag or is_closed(opened):
        return rest.lstrip()
    closing = _PAIRS.get(tag)
    if closing is None:
        return None
    if closing in rest:
        return rest.lstrip().removeprefix(tag) if rest.lstrip().startswith(tag) else rest
    return "{}\n{}\n\n{}".format(thought.strip("\n"), closing, rest.lstrip("\n"))
