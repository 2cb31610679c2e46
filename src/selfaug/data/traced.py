"""Traces each character of a rendered conversation to the text and message that it comes from.

Each text of a conversation is written once more in a letter of its own, a rare one that stands nowhere in the row, and
rendered beside the original: letter for letter the same text, but each of its characters tells where it is from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from selfaug.common.errors import DataError
from selfaug.data.template import ChatTemplate, digest
from selfaug.data.thoughts import FIELDS, split_thought

__all__ = ["DOCUMENTS", "FIXED", "Message", "Text", "Trace", "trace", "unseen_tools"]

Message = Mapping[str, Any]
Kind = Literal["words", "thought", "name", "argument"]

# In `Trace.owner`: what the template writes itself, and what comes from documents.
FIXED, DOCUMENTS = -1, -2

# CJK ideographs of the supplementary planes: letters for every string function and printable for `repr`, unlike
# private-use characters, so that templates treat them as they treat the letters that they stand for.
_FIRST, _BEYOND = 0x20000, 0x323AF
# Fields of an assistant's message that hold what tools said, not what the model did.
_RESULTS = ("tool_responses", "tool_results", "tool_outputs")
# What is replaced: everything but white space and ASCII punctuation (which JSON and templates may look at); in texts
# that hold nothing else also punctuation, but for what is written otherwise inside JSON.
_LETTERS = re.compile(r"[^\s\x00-\x2f\x3a-\x40\x5b-\x60\x7b-\x7f]+")
_MARKS = re.compile(r"[^\s\x00-\x1f\x7f\"'\\]+")


class Text(NamedTuple):
    """One text of a message.

    Args:
        message: The place of the message, or ``DOCUMENTS``.
        kind: What it is to the message.
        name: How an error calls it.
        size: The number of its characters that were replaced; 0 where none could be.
    """

    message: int
    kind: Kind
    name: str
    size: int


class Trace(NamedTuple):
    """A rendered conversation and where its characters come from.

    Args:
        text: The rendered text.
        traced: The same text with the letters of each message replaced; as long as ``text``.
        texts: The texts of the messages; the n-th is written in the letter ``first + n``.
        first: The code point of the first letter.
        codes: For each character of ``traced`` the place of its text in ``texts``, or ``FIXED``.
        owner: For each character of ``traced`` the place of its message, ``DOCUMENTS`` or ``FIXED``.
        messages: The messages that ``traced`` was rendered from.
        template: The template that it was rendered with.
        hidden: What could not be replaced and is not in the text: names of tool calls' arguments.
    """

    text: str
    traced: str
    texts: tuple[Text, ...]
    first: int
    codes: NDArray[np.int64]
    owner: NDArray[np.int64]
    messages: tuple[Message, ...]
    template: ChatTemplate
    hidden: tuple[tuple[int, str], ...]

    def codes_of(self, traced: str) -> NDArray[np.int64]:
        """As ``codes``, for another text that was rendered from some of ``messages``."""
        return _places(_points(traced), self.first, len(self.texts))


class _Scribe:
    """Copies messages, each text in a letter of its own."""

    def __init__(self, first: int, keep: re.Pattern[str] | None) -> None:
        self.first, self.keep = first, keep
        self.texts: list[Text] = []
        # What has no letters (numbers, `true`, an empty text): place of the message, name, and its path in the message.
        self.bare: list[tuple[int, str, tuple[Any, ...]]] = []

    def text(self, text: str, message: int, kind: Kind, name: str) -> str:
        letter = chr(self.first + len(self.texts))
        pieces = self.keep.split(text) if self.keep else [text]
        for pattern in (_LETTERS, _MARKS):
            # Every second piece is a string that the template may look for.
            new = "".join(
                piece if i % 2 else pattern.sub(lambda match: letter * len(match[0]), piece)
                for i, piece in enumerate(pieces)
            )
            if new != text:
                break
        self.texts.append(Text(message, kind, name, new.count(letter)))
        return new

    def message(self, message: Message, place: int) -> dict[str, Any]:
        new = dict(message)
        content = message.get("content")
        who = f"message {place} ({message.get('role')})"
        if isinstance(content, str) and message.get("role") != "assistant":
            new["content"] = self.text(content, place, "words", f"the words of {who}")
        elif isinstance(content, str):
            parts = split_thought(content)
            new["content"] = (
                self.text(parts.before, place, "words", f"the words of {who} before its thought")
                + parts.opening
                + self.text(parts.thought, place, "thought", f"the thought of {who}")
                + parts.closing
                + self.text(parts.words, place, "words", f"the words of {who}")
            )
        for key in FIELDS:
            if isinstance(message.get(key), str) and message.get("role") == "assistant":
                new[key] = self.text(message[key], place, "thought", f"the thought of {who}")
        for key in _RESULTS:
            if message.get(key):
                new[key] = self.results(message[key])
        for key in ("tool_calls", "function_call"):
            if isinstance(message.get(key), (Mapping, list, tuple)) and message[key]:
                new[key] = self.calls(message[key], place, (key,))
        return new

    def results(self, value: Any) -> Any:
        """A copy of what tools gave, which some templates take inside the assistant's message."""
        if isinstance(value, Mapping):
            return {k: v if k in ("name", "id", "type", "role") else self.results(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.results(item) for item in value]
        return self.text(value, DOCUMENTS, "words", "a tool's result") if isinstance(value, str) else value

    def calls(self, value: Any, place: int, path: tuple[Any, ...]) -> Any:
        if isinstance(value, (list, tuple)):
            return [self.calls(item, place, (*path, i)) for i, item in enumerate(value)]
        if not isinstance(value, Mapping):
            return value
        new, name = dict(value), str(value.get("name"))
        if isinstance(value.get("function"), Mapping):
            new["function"] = self.calls(value["function"], place, (*path, "function"))
        if isinstance(value.get("name"), str):
            new["name"] = self.text(name, place, "name", f"the tool call {name!r} of message {place}")
        if "arguments" in value:
            new["arguments"] = self.arguments(value["arguments"], place, (*path, "arguments"), name)
        return new

    def arguments(self, value: Any, place: int, path: tuple[Any, ...], call: str) -> Any:
        of = f"of the tool call {call!r} in message {place}"
        if isinstance(value, Mapping):
            # Letters in the order of the names, so that a template that sorts them finds the same order.
            ordered = sorted(map(str, value), key=str.lower)
            names = {key: self.text(key, place, "argument", f"the argument {key!r} {of}") for key in ordered}
            return {
                names[str(key)]: self.arguments(item, place, (*path, names[str(key)]), call)
                for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self.arguments(item, place, (*path, i), call) for i, item in enumerate(value)]
        if isinstance(value, str):
            new = self.text(value, place, "argument", f"the argument {value!r:.60} {of}")
            if new != value:
                return new
        self.bare.append((place, f"the argument {value!r} {of}", path))
        return value


def trace(template: ChatTemplate, messages: Sequence[Message]) -> Trace:
    """Render ``messages`` and find where each character comes from.

    Raises:
        TemplateRefusedError: If the template refuses the messages.
        DataError: If what the template writes depends on the words, so that nothing can be told by other words.
    """
    text = template.render(messages)
    points = _points(text)
    first = _fresh(points, [*messages, *(template.documents or ())])
    for keep in template.once("strings", lambda: _strings(template.source)):
        scribe = _Scribe(first, keep)
        new = [scribe.message(message, place) for place, message in enumerate(messages)]
        documents = [
            {key: scribe.text(value, DOCUMENTS, "words", "a document") for key, value in document.items()}
            for document in template.documents or ()
        ]
        tracing = _with_documents(template, documents)
        traced = tracing.try_render(new)
        if traced is None or len(traced) != len(text):
            continue
        codes = _places(_points(traced), first, len(scribe.texts))
        if np.any((points != _points(traced)) & (codes == FIXED)):
            continue
        messages_of = np.array([*(t.message for t in scribe.texts), FIXED], dtype=np.int64)
        hidden = _hidden(tracing, new, scribe)
        return Trace(
            text, traced, tuple(scribe.texts), first, codes, messages_of[codes], tuple(new), tracing, tuple(hidden)
        )
    raise DataError(
        f"what the chat template of {template.tokenizer.name_or_path!r} writes depends on the words of the messages, "
        "so the assistant's tokens cannot be told exactly",
        "leave the row out (--on_bad_row skip), or give prompt/completion rows.",
    )


def _hidden(template: ChatTemplate, traced: Sequence[Message], scribe: _Scribe) -> list[tuple[int, str]]:
    """The values without letters that do not change the text when they become other values."""
    if not scribe.bare:
        return []
    other = deepcopy(list(traced))
    marks = []
    for number, (place, _, path) in enumerate(scribe.bare):
        at: Any = other[place]
        for step in path[:-1]:
            at = at[step]
        # A text stays a text, anything else becomes a number that stands nowhere else.
        is_text = isinstance(at[path[-1]], str)
        mark = chr(scribe.first + len(scribe.texts) + number) if is_text else 730_100_000 + 7 * number
        at[path[-1]] = mark
        marks.append(str(mark))
    text = template.try_render(other) or ""
    return [(place, name) for mark, (place, name, _) in zip(marks, scribe.bare, strict=True) if mark not in text]


def unseen_tools(template: ChatTemplate, messages: Sequence[Message]) -> str | None:
    """What the text does not hold of the template's tools: a tool's name or that of a parameter; ``None`` for nothing.

    Found once for each set of tools, by changing each name and looking for it in the text.
    """
    tools = list(template.tools or ())
    if not tools:
        return None

    def unseen() -> str | None:
        scribe = _Scribe(_fresh(_points(template.render(messages)), [*messages, *tools]), None)
        changed = []
        for tool in tools:
            new = deepcopy(dict(tool))
            function = new["function"] if isinstance(new.get("function"), dict) else new
            name = str(function.get("name"))
            if isinstance(function.get("name"), str):
                function["name"] = scribe.text(name, FIXED, "name", f"the tool {name!r}")
            parameters = function.get("parameters")
            properties = parameters.get("properties") if isinstance(parameters, dict) else None
            if isinstance(parameters, dict) and isinstance(properties, dict):
                parameters["properties"] = {
                    scribe.text(key, FIXED, "name", f"the parameter {key!r} of the tool {name!r}"): value
                    for key, value in properties.items()
                }
            changed.append(new)
        text = _with_tools(template, changed).try_render(messages)
        if text is None:  # The names are looked up: then they must at least be there.
            names = [str((tool.get("function") or tool).get("name")) for tool in tools]
            text = template.render(messages)
            return next((f"the tool {name!r}" for name in names if name not in text), None)
        letters = enumerate(scribe.texts)
        return next((t.name for i, t in letters if t.size and chr(scribe.first + i) not in text), None)

    result: str | None = template.once(f"tools {digest(json.dumps(tools, sort_keys=True, default=str))}", unseen)
    return result


def _with_documents(template: ChatTemplate, documents: Sequence[Mapping[str, Any]]) -> ChatTemplate:
    return ChatTemplate(template.tokenizer, template.source, template.tools, documents, template.kwargs)


def _with_tools(template: ChatTemplate, tools: Sequence[Any]) -> ChatTemplate:
    return ChatTemplate(template.tokenizer, template.source, tools, template.documents, template.kwargs)


def _points(text: str) -> NDArray[np.int64]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)


def _places(points: NDArray[np.int64], first: int, count: int) -> NDArray[np.int64]:
    return np.where((points >= first) & (points < first + count), points - first, FIXED)


def _fresh(points: NDArray[np.int64], messages: Sequence[Message]) -> int:
    """A code point from which on no character stands in the text or the messages, for as many as they may need."""
    held = json.dumps([dict(message) for message in messages], ensure_ascii=False, default=str)
    needed = 16 + sum(map(held.count, '",:'))
    used = np.concatenate([points, _points(held)])
    used = used[used >= _FIRST]
    for first in range(_FIRST, _BEYOND - needed, needed):
        if not np.any((used >= first) & (used < first + needed)):
            return first
    raise DataError("a row holds rare characters of every kind, so its texts cannot be told apart", "leave it out.")


def _strings(source: str) -> list[re.Pattern[str] | None]:
    """The strings that the template may look for in a message: tags and sentences; and these with single words."""
    import jinja2

    try:
        tokens = list(jinja2.Environment().lex(source))
    except jinja2.TemplateError:
        return [None]
    found = {
        value[1:-1].encode("ascii", "backslashreplace").decode("unicode-escape").strip()
        for _, kind, value in tokens
        if kind == "string"
    }
    words = sorted((text for text in found if re.search(r"\w{2}", text)), key=lambda text: (-len(text), text))
    tags = [text for text in words if re.search(r"\W", text)]
    return [re.compile(f"({'|'.join(map(re.escape, texts))})") if texts else None for texts in (tags, words)]
