"""Thoughts (``<think>…</think>``): where an answer holds one, and what follows a prompt that opens one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["FIELDS", "Answer", "after_opening", "in_fields", "is_closed", "split_thought"]

# Message fields that hold thoughts; transformers copies the first three into each other.
FIELDS = ("reasoning_content", "reasoning", "thinking", "tool_plan")

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
    """The message with the thought that opens an assistant's content moved to ``reasoning_content``, if it has one."""
    content = message.get("content")
    if message.get("role") != "assistant" or not isinstance(content, str) or any(message.get(key) for key in FIELDS):
        return dict(message)
    parts = split_thought(content)
    if not parts.closing or parts.before.strip() or not parts.thought.strip():
        return dict(message)
    return {**message, FIELDS[0]: parts.thought.strip("\n"), "content": parts.words.lstrip("\n")}


def is_closed(text: str) -> bool:
    """Whether ``text`` is one empty thought, opened and closed, and nothing else."""
    return _CLOSED.fullmatch(text) is not None


def after_opening(opened: str, rest: str, thought: str) -> str | None:
    """Return what a model writes after ``opened``, or ``None`` where that cannot be told.

    A thought that the prompt opens is closed in every answer: behind the answer's own thought, or at once where it has
    none (``<think>`` and a line break, then ``</think>``, as the families write an empty thought).

    Args:
        opened: The end of the generation prompt, which the template does not write in the finished turn.
        rest: The finished turn behind that place, with its end.
        thought: The answer's thought, which the template may have left out of ``rest``.
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
