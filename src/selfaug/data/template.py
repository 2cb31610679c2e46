"""Renders chat templates and finds out what they write, and finds the control strings of a tokenizer."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from selfaug.common.errors import DataError
from selfaug.data.record import TRAIN_FLAGS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "ChatTemplate",
    "TemplateRefusedError",
    "common_beginning",
    "control_strings",
    "digest",
    "escape",
    "matcher",
    "opens_again",
    "template_of",
    "trim_turn",
]

# Private-use characters do not occur in normal text, so these texts can be found after rendering.
_QUESTION, _ANSWER = "\ue0f1question\ue0f2", "\ue0f1answer\ue0f2"
# Patterns of what is never cut in two besides control strings: an empty thought; a tag, a word.
_EMPTY, _PIECES = r"<(\w+)>\s*</\1>\s*", r"<[^<>\s]+>|\[/?[A-Z_]+\]|\w+|."
_ONCE: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()


class TemplateRefusedError(DataError):
    """An error that a chat template raised for some messages."""


def template_of(tokenizer: PreTrainedTokenizerBase, tools: Sequence[Any] | None = None) -> str | None:
    """Return the tokenizer's chat template, or ``None``; of several named ones, the one that ``transformers`` takes."""
    if not tokenizer.chat_template:
        return None
    text: str = tokenizer.get_chat_template(tools=list(tools) if tools else None)
    return text


@lru_cache(maxsize=64)
def digest(text: str) -> str:
    """Return the sha256 of the UTF-8 text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def control_strings(tokenizer: PreTrainedTokenizerBase, *, special_only: bool) -> tuple[str, ...]:
    """Return the strings that become one token wherever they are in a text: the added tokens, longest first.

    Args:
        tokenizer: Tokenizer.
        special_only: Whether only tokens flagged as special count. Some models' end of turn is an ordinary added
            token. Blank tokens (runs of spaces) never count.
    """
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special or not special_only}
    strings = {text for text in added | set(tokenizer.all_special_tokens) if len(text.strip()) > 1}
    return tuple(sorted(strings, key=lambda text: (-len(text), text)))


@lru_cache(maxsize=64)
def matcher(strings: tuple[str, ...]) -> re.Pattern[str]:
    """Return a pattern of any of ``strings``, in the given order of preference; it never matches if there are none."""
    if not strings:
        return re.compile(r"(?!)")
    # The look-ahead rejects most positions quickly, since some tokenizers have a thousand special tokens.
    first = "".join(re.escape(char) for char in sorted({text[0] for text in strings}))
    return re.compile(f"(?=[{first}])(?:{'|'.join(re.escape(text) for text in strings)})")


def escape(text: str, strings: tuple[str, ...]) -> str:
    """Put a space after the first character of each of ``strings`` in ``text``: ``<|end|>`` becomes ``< |end|>``.

    A document then cannot end its own turn. The text stays readable and is the same in every serving engine; escaping
    it again changes nothing.
    """
    pattern = matcher(strings)
    at = 0
    while match := pattern.search(text, at):
        # Go on after one character, not after the match: another control string may start inside this one.
        at = match.start() + 1
        text = f"{text[:at]} {text[at:]}"
    return text


def trim_turn(text: str, controls: tuple[str, ...]) -> str:
    """Return ``text`` up to its last control string if only white space follows, else without trailing white space."""
    ends = [match.end() for match in matcher(controls).finditer(text)]
    if ends and not text[ends[-1] :].strip():
        return text[: ends[-1]]
    return text.rstrip()


@lru_cache(maxsize=64)
def _pieces(controls: tuple[str, ...], empty: bool = False) -> re.Pattern[str]:
    parts = [_EMPTY] if empty else []
    return re.compile("|".join([*parts, *(re.escape(text) for text in controls), _PIECES]), re.DOTALL)


def common_beginning(text: str, other: str, controls: tuple[str, ...]) -> int:
    """Return the number of characters of the common beginning of two texts that cuts no control string, tag or word.

    An empty thought in ``text`` counts as one piece.
    """
    if other.startswith(text):
        return len(text)
    same = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), len(other))
    for one in (text, other):
        if same < len(one):
            pieces = _pieces(controls, empty=one is text).finditer(one)
            crossing = next(match for match in pieces if match.end() > same)
            same = min(same, crossing.start())
    return same


def opens_again(before: str, after: str, controls: tuple[str, ...], eos: str | None) -> bool:
    """Tell whether ``after`` ends with the control string, tag or word with which ``before`` opens an answer.

    EOS does not count, since a template may end both the question's and the answer's turn with it.
    """
    back = zip(reversed(before), reversed(after), strict=False)
    same = next((i for i, (a, b) in enumerate(back) if a != b), min(len(before), len(after)))
    pieces = [match.group() for match in _pieces(controls).finditer(after) if match.start() >= len(after) - same]
    return re.search(r"\w", "".join(piece for piece in pieces if piece != eos)) is not None


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template with its tokenizer and variables.

    Args:
        tokenizer: Tokenizer with the special tokens, and with the template where ``text`` is ``None``.
        text: Text of the template, or its name among the tokenizer's.
        tools: JSON schemas of tools.
        documents: Objects with ``title`` and ``text``, for templates that place documents themselves.
        kwargs: Other variables of the template, such as ``enable_thinking``.
    """

    tokenizer: PreTrainedTokenizerBase
    text: str | None = None
    tools: Sequence[Any] | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def source(self) -> str:
        """The text of the template.

        Raises:
            DataError: If there is none.
        """
        if self.text is None and not self.tokenizer.chat_template:
            raise DataError(
                f"tokenizer {self.tokenizer.name_or_path!r} has no chat template, so messages have no token form",
                "give a chat template, or use the plain renderer.",
            )
        text: str = self.tokenizer.get_chat_template(self.text, list(self.tools) if self.tools else None)
        return text

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the result of ``make``, computed once for this tokenizer, template and variables, for any tools."""
        known = _ONCE.setdefault(self.tokenizer, {})
        key = (name, *self._key)
        if key not in known:
            known[key] = make()
        return known[key]

    @cached_property
    def _key(self) -> tuple[str, str]:
        return self.source, json.dumps(dict(self.kwargs), sort_keys=True, default=str)

    def render(self, messages: Sequence[Mapping[str, Any]], *, generation: bool = False, source: str = "") -> str:
        """Return the text of ``messages``, with the beginning of an assistant turn at its end if ``generation``.

        If the template takes contents only as lists of parts, it gets texts in that form.

        Raises:
            TemplateRefusedError: If the template raises an error.
        """
        if self.takes_parts:
            messages = [_in_parts(message) for message in messages]
        return self._write(messages, generation=generation, source=source)

    def _write(self, messages: Sequence[Mapping[str, Any]], *, generation: bool = False, source: str = "") -> str:
        import jinja2

        try:
            text: str = self.tokenizer.apply_chat_template(
                [{key: value for key, value in message.items() if key not in TRAIN_FLAGS} for message in messages],
                tools=list(self.tools) if self.tools else None,
                documents=[dict(document) for document in self.documents] if self.documents else None,
                chat_template=source or self.source,
                add_generation_prompt=generation,
                tokenize=False,
                **self.kwargs,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            roles = ", ".join(str(message.get("role")) for message in messages) or "none"
            raise TemplateRefusedError(
                f"the chat template of {self.tokenizer.name_or_path!r} refuses messages of {roles}: {error}",
                "change the messages to what the template takes, or choose another template.",
            ) from error
        return text

    def try_render(self, messages: Sequence[Mapping[str, Any]], *, generation: bool = False) -> str | None:
        """Return the text of :meth:`render`, or ``None`` if the template refuses the messages."""
        try:
            return self.render(messages, generation=generation)
        except TemplateRefusedError:
            return None

    @cached_property
    def controls(self) -> tuple[str, ...]:
        """All control strings of the tokenizer."""
        strings: tuple[str, ...] = self.once("controls", lambda: control_strings(self.tokenizer, special_only=False))
        return strings

    @cached_property
    def takes_parts(self) -> bool:
        """Whether the template writes contents that are lists of parts, but not those that are texts."""

        def writes(parts: bool) -> bool:
            messages = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
            try:
                text = self._write([_in_parts(message) for message in messages] if parts else messages)
            except TemplateRefusedError:
                return False
            return _QUESTION in text and _ANSWER in text

        return bool(self.once("parts", lambda: not writes(False) and writes(True)))

    def facts(self) -> dict[str, Any]:
        """Return the renderer's settings for the template: its text and hash, what it takes, and its end of turn.

        Raises:
            DataError: If the template cannot write one question and one answer.
        """
        kwargs = dict(self.kwargs)
        if "strftime_now" in self.source and "date_string" in self.source:
            kwargs.setdefault("date_string", datetime.now(UTC).strftime("%d %b %Y"))
        user, system = {"role": "user", "content": "x"}, {"role": "system", "content": _QUESTION}
        with_documents = replace(self, documents=[{"title": "x", "text": _QUESTION}])
        return {
            "chat_template": self.source,
            "chat_template_sha256": digest(self.source),
            "chat_template_kwargs": kwargs,
            "system_role": _QUESTION in (self.try_render([system, user]) or ""),
            "template_documents": _QUESTION in (with_documents.try_render([user]) or ""),
            "end_of_turn": self.end_of_turn,
        }

    @cached_property
    def end_of_turn(self) -> str:
        """The text after the last assistant turn, up to its last control string; may be empty.

        Raises:
            TemplateRefusedError: If the template refuses one question and one answer.
            DataError: If it does not write their words as they are, or opens another turn after the answer.
        """
        text = self.render([{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}])
        if text.count(_ANSWER) != 1 or _QUESTION not in text:
            raise DataError(
                f"the chat template of {self.tokenizer.name_or_path!r} does not write the words of a question and its "
                "answer as they are (it may expect content as a list of parts), so the model would not see them",
                "choose a chat template that renders text content.",
            )
        before, _, after = text.partition(_ANSWER)
        question = [{"role": "user", "content": _QUESTION}]
        if self.try_render(question) == self.try_render(question, generation=True) and opens_again(
            before, after, self.controls, self.tokenizer.eos_token
        ):
            raise DataError(
                f"the chat template of {self.tokenizer.name_or_path!r} opens another turn behind an answer without "
                "being asked to, so the model would learn to write its own next prompt",
                "write that opening only {% if add_generation_prompt %}.",
            )
        return trim_turn(after, self.controls)


def _in_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else dict(message)
