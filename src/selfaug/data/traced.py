"""Traces each character of a rendered conversation to the text and message that it comes from.

Each text of a conversation is replaced by a rare letter of its own, which is nowhere in the row, and the conversation
is rendered again. The result is as long as the original, and each of its characters shows which text it comes from.
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

FIXED, DOCUMENTS = -1, -2
"""Values of ``Trace.owner`` for characters of the template itself, and for those of documents."""

# Range of the letters: CJK ideographs of the supplementary planes. Unlike private-use characters they are letters for
# every string function and printable for `repr`, so templates treat them like the letters that they replace.
_FIRST, _BEYOND = 0x20000, 0x323AF
# Fields of an assistant's message that hold results of tools.
_RESULTS = ("tool_responses", "tool_results", "tool_outputs")
# Everything is replaced but white space and ASCII punctuation, which JSON and templates may examine. In texts of
# nothing else punctuation is replaced too, except for characters that JSON escapes.
_LETTERS = re.compile(r"[^\s\x00-\x2f\x3a-\x40\x5b-\x60\x7b-\x7f]+")
_MARKS = re.compile(r"[^\s\x00-\x1f\x7f\"'\\]+")


class Text(NamedTuple):
    """One text of a message.

    Args:
        message: Index of the message, or ``DOCUMENTS``.
        kind: Role of the text in its message.
        name: Description of the text for errors.
        size: Number of its characters that were replaced; 0 where none can be.
    """

    message: int
    kind: Kind
    name: str
    size: int


class Trace(NamedTuple):
    """A rendered conversation and the origin of its characters.

    Args:
        text: Rendered text.
        traced: Same text with the letters of each message replaced; as long as ``text``.
        texts: Texts of the messages; the n-th is written in the letter ``first + n``.
        first: Code point of the first letter.
        codes: Index in ``texts`` of the text of each character of ``traced``, or ``FIXED``.
        owner: Index of the message of each character of ``traced``, or ``DOCUMENTS`` or ``FIXED``.
        messages: Messages from which ``traced`` was rendered.
        template: Template with which ``traced`` was rendered.
        hidden: Message index and description of each argument without letters that is not in the text.
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
        """Return the ``codes`` of another text that was rendered from some of ``messages``."""
        return _codes(_points(traced), self.first, len(self.texts))


class _LetterCopy:
    """Copies messages with each text in a letter of its own.

    Args:
        first: Code point of the first letter.
        keep: Pattern of strings that stay as they are; ``None`` for none.
    """

    def __init__(self, first: int, keep: re.Pattern[str] | None) -> None:
        self.first, self.keep = first, keep
        self.texts: list[Text] = []
        # Arguments without letters (numbers, `true`, empty texts): message index, description, path in the message.
        self.bare: list[tuple[int, str, tuple[Any, ...]]] = []

    def text(self, text: str, message: int, kind: Kind, name: str) -> str:
        letter = chr(self.first + len(self.texts))
        pieces = self.keep.split(text) if self.keep else [text]
        for pattern in (_LETTERS, _MARKS):
            # The odd pieces are strings that the template may look for.
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
        """Copy results of tools, which some templates take inside the assistant's message."""
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
            # Letters are in the order of the names, for templates that sort the arguments by name.
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
    """Render ``messages`` and find the origin of each character.

    Raises:
        TemplateRefusedError: If the template refuses the messages.
        DataError: If the template writes something else with other words, so that these show no origin.
    """
    text = template.render(messages)
    points = _points(text)
    first = _fresh(points, [*messages, *(template.documents or ())])
    for keep in template.once("strings", lambda: _strings(template.source)):
        copied = _LetterCopy(first, keep)
        new = [copied.message(message, place) for place, message in enumerate(messages)]
        documents = [
            {key: copied.text(value, DOCUMENTS, "words", "a document") for key, value in document.items()}
            for document in template.documents or ()
        ]
        tracing = _with_documents(template, documents)
        traced = tracing.try_render(new)
        if traced is None or len(traced) != len(text):
            continue
        codes = _codes(_points(traced), first, len(copied.texts))
        if np.any((points != _points(traced)) & (codes == FIXED)):
            continue
        messages_of = np.array([*(t.message for t in copied.texts), FIXED], dtype=np.int64)
        hidden = _hidden(tracing, new, copied)
        return Trace(
            text, traced, tuple(copied.texts), first, codes, messages_of[codes], tuple(new), tracing, tuple(hidden)
        )
    raise DataError(
        f"what the chat template of {template.tokenizer.name_or_path!r} writes depends on the words of the messages, "
        "so the assistant's tokens cannot be told exactly",
        "leave the row out (--on_bad_row skip), or give prompt/completion rows.",
    )


def _hidden(template: ChatTemplate, traced: Sequence[Message], copied: _LetterCopy) -> list[tuple[int, str]]:
    """Return the arguments without letters that are not in the text: the text does not change with their values."""
    if not copied.bare:
        return []
    other = deepcopy(list(traced))
    marks = []
    for number, (place, _, path) in enumerate(copied.bare):
        at: Any = other[place]
        for step in path[:-1]:
            at = at[step]
        # A text is replaced by a text, anything else by a number that probably is nowhere else.
        is_text = isinstance(at[path[-1]], str)
        mark = chr(copied.first + len(copied.texts) + number) if is_text else 730_100_000 + 7 * number
        at[path[-1]] = mark
        marks.append(str(mark))
    text = template.try_render(other) or ""
    return [(place, name) for mark, (place, name, _) in zip(marks, copied.bare, strict=True) if mark not in text]


def unseen_tools(template: ChatTemplate, messages: Sequence[Message]) -> str | None:
    """Return the first tool or parameter of the template's tools whose name is not in the text; ``None`` for none.

    The result is computed once for each set of tools, by changing each name and searching it in the text.
    """
    tools = list(template.tools or ())
    if not tools:
        return None

    def unseen() -> str | None:
        copied = _LetterCopy(_fresh(_points(template.render(messages)), [*messages, *tools]), None)
        changed = []
        for tool in tools:
            new = deepcopy(dict(tool))
            function = new["function"] if isinstance(new.get("function"), dict) else new
            name = str(function.get("name"))
            if isinstance(function.get("name"), str):
                function["name"] = copied.text(name, FIXED, "name", f"the tool {name!r}")
            parameters = function.get("parameters")
            properties = parameters.get("properties") if isinstance(parameters, dict) else None
            if isinstance(parameters, dict) and isinstance(properties, dict):
                parameters["properties"] = {
                    copied.text(key, FIXED, "name", f"the parameter {key!r} of the tool {name!r}"): value
                    for key, value in properties.items()
                }
            changed.append(new)
        text = _with_tools(template, changed).try_render(messages)
        if text is None:  # the template looks up names, so only their presence can be checked
            names = [str((tool.get("function") or tool).get("name")) for tool in tools]
            text = template.render(messages)
            return next((f"the tool {name!r}" for name in names if name not in text), None)
        letters = enumerate(copied.texts)
        return next((t.name for i, t in letters if t.size and chr(copied.first + i) not in text), None)

    result: str | None = template.once(f"tools {digest(json.dumps(tools, sort_keys=True, default=str))}", unseen)
    return result


def _with_documents(template: ChatTemplate, documents: Sequence[Mapping[str, Any]]) -> ChatTemplate:
    return ChatTemplate(template.tokenizer, template.source, template.tools, documents, template.kwargs)


def _with_tools(template: ChatTemplate, tools: Sequence[Any]) -> ChatTemplate:
    return ChatTemplate(template.tokenizer, template.source, tools, template.documents, template.kwargs)


def _points(text: str) -> NDArray[np.int64]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)


def _codes(points: NDArray[np.int64], first: int, count: int) -> NDArray[np.int64]:
    return np.where((points >= first) & (points < first + count), points - first, FIXED)


def _fresh(points: NDArray[np.int64], messages: Sequence[Message]) -> int:
    """Return the start of a range of letters that are not in the text or messages, one for each text they may have."""
    written = json.dumps([dict(message) for message in messages], ensure_ascii=False, default=str)
    needed = 16 + sum(map(written.count, '",:'))
    used = np.concatenate([points, _points(written)])
    used = used[used >= _FIRST]
    for first in range(_FIRST, _BEYOND - needed, needed):
        if not np.any((used >= first) & (used < first + needed)):
            return first
    raise DataError("a row holds rare characters of every kind, so its texts cannot be told apart", "leave it out.")


def _strings(source: str) -> list[re.Pattern[str] | None]:
    """Return patterns of the strings that the template may look for in a message: tags and sentences; also words."""
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
