"""What a chat template writes, and which strings a tokenizer reads as control tokens."""

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

# Private-use characters do not stand in sane text, so these are found again after rendering.
_ASKED, _SAID = "\ue0f1question\ue0f2", "\ue0f1answer\ue0f2"
# What is never cut in two, before and after the control strings: an empty thought; a tag, a word.
_EMPTY, _PIECES = r"<(\w+)>\s*</\1>\s*", r"<[^<>\s]+>|\[/?[A-Z_]+\]|\w+|."
_ONCE: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()


class TemplateRefusedError(DataError):
    """A chat template that raised an error for some messages."""


def template_of(tokenizer: PreTrainedTokenizerBase, tools: Sequence[Any] | None = None) -> str | None:
    """The text of the tokenizer's chat template, or ``None``; of several named ones, the one ``transformers`` takes."""
    if not tokenizer.chat_template:
        return None
    text: str = tokenizer.get_chat_template(tools=list(tools) if tools else None)
    return text


@lru_cache(maxsize=64)
def digest(text: str) -> str:
    """sha256 of the UTF-8 text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def control_strings(tokenizer: PreTrainedTokenizerBase, *, special_only: bool) -> tuple[str, ...]:
    """The strings that the tokenizer turns into one token wherever they stand: its added tokens, longest first.

    Args:
        tokenizer: Its vocabulary is asked.
        special_only: Only those flagged as special. Without it also ordinary added tokens, as some models' end of
            turn is one; blank ones (runs of spaces) are never control strings.
    """
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special or not special_only}
    strings = {text for text in added | set(tokenizer.all_special_tokens) if len(text.strip()) > 1}
    return tuple(sorted(strings, key=lambda text: (-len(text), text)))


@lru_cache(maxsize=64)
def matcher(strings: tuple[str, ...]) -> re.Pattern[str]:
    """A pattern for any of ``strings``, the longest at each place; it matches nothing where there are none."""
    if not strings:
        return re.compile(r"(?!)")
    # The look-ahead rejects nearly every position at once: some tokenizers reserve a thousand special tokens.
    first = "".join(re.escape(char) for char in sorted({text[0] for text in strings}))
    return re.compile(f"(?=[{first}])(?:{'|'.join(re.escape(text) for text in strings)})")


def escape(text: str, strings: tuple[str, ...]) -> str:
    """``text`` with a space after the first character of each of ``strings`` in it: ``<|end|>`` becomes ``< |end|>``.

    So a document cannot close its own turn. The text stays readable, the same in every serving engine, and a text
    that was escaped already does not change.
    """
    pattern = matcher(strings)
    at = 0
    while match := pattern.search(text, at):
        # One character on, not behind the match: another control string may start inside this one.
        at = match.start() + 1
        text = f"{text[:at]} {text[at:]}"
    return text


def trim_turn(text: str, controls: tuple[str, ...]) -> str:
    """``text`` up to its last control string where only white space follows it, else without white space at its end."""
    ends = [match.end() for match in matcher(controls).finditer(text)]
    if ends and not text[ends[-1] :].strip():
        return text[: ends[-1]]
    return text.rstrip()


@lru_cache(maxsize=64)
def _pieces(controls: tuple[str, ...], empty: bool = False) -> re.Pattern[str]:
    parts = [_EMPTY] if empty else []
    return re.compile("|".join([*parts, *(re.escape(text) for text in controls), _PIECES]), re.DOTALL)


def common_beginning(text: str, other: str, controls: tuple[str, ...]) -> int:
    """How much of ``text`` stands at the beginning of ``other``: all, or some whole control strings, tags and words.

    An empty thought of ``text`` counts as one piece.
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
    """Whether ``after`` ends as ``before`` does, with some whole control string, tag or word: what opens an answer.

    EOS opens nothing: a template may end the question's turn with it as it ends the answer's, and open none.
    """
    back = zip(reversed(before), reversed(after), strict=False)
    same = next((i for i, (a, b) in enumerate(back) if a != b), min(len(before), len(after)))
    pieces = [match.group() for match in _pieces(controls).finditer(after) if match.start() >= len(after) - same]
    return re.search(r"\w", "".join(piece for piece in pieces if piece != eos)) is not None


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template with everything that it is rendered with.

    Args:
        tokenizer: Gives the template where ``text`` is ``None``, and the special tokens.
        text: The template, or its name among the tokenizer's.
        tools: JSON schemas.
        documents: ``{title, text}`` for templates that place documents themselves.
        kwargs: More variables of the template, such as ``enable_thinking``.
    """

    tokenizer: PreTrainedTokenizerBase
    text: str | None = None
    tools: Sequence[Any] | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def source(self) -> str:
        """The template that is used.

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
        """What ``make`` gives, computed once for this tokenizer, template and variables, whatever the tools."""
        known = _ONCE.setdefault(self.tokenizer, {})
        key = (name, *self._key)
        if key not in known:
            known[key] = make()
        return known[key]

    @cached_property
    def _key(self) -> tuple[str, str]:
        return self.source, json.dumps(dict(self.kwargs), sort_keys=True, default=str)

    def render(self, messages: Sequence[Mapping[str, Any]], *, generation: bool = False, source: str = "") -> str:
        """The text of ``messages``; with ``generation`` the opening of an assistant turn stands at its end.

        Where the template takes contents only as lists of parts, texts are given to it so.

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
        """:meth:`render`, or ``None`` where the template refuses."""
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
        """Whether the template writes a content that is a list of parts, but not one that is a text."""

        def shown(parts: bool) -> bool:
            messages = [{"role": "user", "content": _ASKED}, {"role": "assistant", "content": _SAID}]
            try:
                text = self._write([_in_parts(message) for message in messages] if parts else messages)
            except TemplateRefusedError:
                return False
            return _ASKED in text and _SAID in text

        return bool(self.once("parts", lambda: not shown(False) and shown(True)))

    def facts(self) -> dict[str, Any]:
        """What a renderer keeps of the template: its text and hash, what it takes, and how it ends a turn.

        Raises:
            DataError: If it cannot write one question and one answer.
        """
        kwargs = dict(self.kwargs)
        if "strftime_now" in self.source and "date_string" in self.source:
            kwargs.setdefault("date_string", datetime.now(UTC).strftime("%d %b %Y"))
        asked, told = {"role": "user", "content": "x"}, {"role": "system", "content": _ASKED}
        with_documents = replace(self, documents=[{"title": "x", "text": _ASKED}])
        return {
            "chat_template": self.source,
            "chat_template_sha256": digest(self.source),
            "chat_template_kwargs": kwargs,
            "system_role": _ASKED in (self.try_render([told, asked]) or ""),
            "template_documents": _ASKED in (with_documents.try_render([asked]) or ""),
            "end_of_turn": self.end_of_turn,
        }

    @cached_property
    def end_of_turn(self) -> str:
        """What the template writes after the last assistant turn, up to its last control string; may be empty.

        Raises:
            TemplateRefusedError: If not even one question and one answer can be rendered.
            DataError: If they are not in the text as they are.
        """
        text = self.render([{"role": "user", "content": _ASKED}, {"role": "assistant", "content": _SAID}])
        if text.count(_SAID) != 1 or _ASKED not in text:
            raise DataError(
                f"the chat template of {self.tokenizer.name_or_path!r} does not write the words of a question and its "
                "answer as they are (it may expect content as a list of parts), so the model would not see them",
                "choose a chat template that renders text content.",
            )
        before, _, after = text.partition(_SAID)
        asked = [{"role": "user", "content": _ASKED}]
        if self.try_render(asked) == self.try_render(asked, generation=True) and opens_again(
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
