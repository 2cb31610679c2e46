"""The layout of documents, questions and messages, before any chat template."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

from selfaug.common.errors import ConfigError, DataError, nearest
from selfaug.data.record import Conversation, Document, Record
from selfaug.data.thoughts import split_thought

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selfaug.data.prompts import Renderer

__all__ = ["answer_texts", "blocks", "check", "document", "into_first_user", "map_texts", "plain_template", "texts_of"]

_PLAIN = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] | trim }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}\n\n"
    "{% endfor %}"
    "{{ 'Assistant:' if add_generation_prompt else '' }}"
)
_CHOICES = {
    "mode": ("chat", "plain"),
    "order": ("given", "reversed", "best_first", "best_last"),
    "question_position": ("after", "before", "both"),
}
_TEXTS = ("system", "answer_cue", "abstention", "end_of_turn")
_PLACES = {
    "document_titled": ("number", "title"),
    "document_untitled": ("number",),
    "question": ("question",),
}


def check(renderer: Renderer) -> None:
    """Check the settings of a renderer.

    Raises:
        ConfigError: If a value is unknown or of another type, or a line has unknown placeholders.
    """
    for name, known in _CHOICES.items():
        value = getattr(renderer, name)
        if value not in known:
            raise ConfigError(
                f"{name}={value!r} is not known.{nearest(str(value), known)}", f"one of {', '.join(known)}."
            )
    for name in (*_TEXTS, *_PLACES):
        if not isinstance(getattr(renderer, name), str):
            raise ConfigError(f"{name}={getattr(renderer, name)!r} is not a text", f"give {name} as a text.")
    for name, places in _PLACES.items():
        layout = getattr(renderer, name)
        try:
            layout.format(**dict.fromkeys(places, "x"))
        except (LookupError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"{name}={layout!r} cannot be filled in: {error!r}",
                f"it may hold {' and '.join('{' + place + '}' for place in places)}; write {{{{ and }}}} for braces.",
            ) from error
    if "{question}" not in renderer.question:
        raise ConfigError(f"question={renderer.question!r} leaves the question out", "write {question} where it goes.")
    if not renderer.abstention.strip():
        raise ConfigError("abstention is blank, so rows without an answer would train nothing", "give it a text.")


def blocks(renderer: Renderer, documents: Sequence[Document]) -> list[str]:
    """Return a text for each document in the renderer's order: its header, numbered from 1, and its text."""
    ordered = list(documents)
    if renderer.order == "reversed":
        ordered.reverse()
    elif renderer.order != "given" and all(item.score is not None for item in ordered):
        ordered.sort(key=lambda item: item.score or 0.0, reverse=renderer.order == "best_first")
    texts = []
    for number, item in enumerate(ordered, start=1):
        form = renderer.document_titled if renderer.show_titles and item.title else renderer.document_untitled
        header = form.format(number=number, title=renderer.escape(item.title or ""))
        texts.append(f"{header}\n{renderer.escape(item.text.strip())}".strip())
    return texts


def document(value: Document | Mapping[str, Any] | str) -> Document:
    """Return the document of a text, or of an object with ``text`` and optionally ``title``, ``id`` and ``score``.

    Raises:
        DataError: If it has no text, or a title or score of another type: scores in texts would be sorted as words.
    """
    if isinstance(value, Document):
        return value
    row: Mapping[str, Any] = {"text": value} if isinstance(value, str) else value
    text = row.get("text") if isinstance(row, Mapping) else None
    if not isinstance(text, str):
        raise DataError(f"document {value!r:.80} has no text", "give texts, or objects with a 'text'.")
    for name, kind, wanted in (("title", str, "text"), ("score", Real, "number")):
        if row.get(name) is not None and not isinstance(row[name], kind):
            raise DataError(f"document {value!r:.80} has a {name} that is no {wanted}", f"give a {wanted}, or none.")
    return Document(text, row.get("title"), row.get("id"), row.get("score"))


def into_first_user(messages: Sequence[Mapping[str, Any]], text: str) -> list[dict[str, Any]]:
    """Return the messages with ``text`` and a blank line before the first user message, which is added if missing."""
    result = [dict(message) for message in messages]
    for message in result:
        if message.get("role") == "user":
            message["content"] = f"{text}\n\n{message.get('content') or ''}"
            return result
    return [{"role": "user", "content": text}, *result]


def map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return a JSON value with ``change`` applied to each text in it, except to keys."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_texts(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [map_texts(item, change) for item in value]
    return value


def answer_texts(answer: str) -> list[str]:
    """Return the parts of an answer, with the tags of a thought at its beginning, if any, at the odd indices."""
    parts = split_thought(answer)
    return [answer] if not parts.closing or parts.before.strip() else list(parts)


def texts_of(renderer: Renderer, item: Record | Conversation) -> Iterator[str]:
    """Yield every text of the item that becomes a part of the prompt or the response."""
    texts: list[str] = []
    if isinstance(item, Record):
        texts += [item.question, renderer.system if item.system is None else item.system]
        texts += answer_texts(item.answers[0] if item.answers else renderer.abstention)[::2]
    else:

        def collect(text: str) -> str:
            texts.append(text)
            return text

        for message in item.messages:
            if message.get("role") == "assistant" and isinstance(message.get("content"), str):
                texts += answer_texts(message["content"])[::2]
                message = {**message, "content": ""}
            map_texts(message, collect)
    for entry in item.documents:
        texts.append(entry.text)
        if entry.title and renderer.show_titles:
            texts.append(entry.title)
    yield from texts


def plain_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a chat template for tokenizers without one: ``User: ...`` and ``Assistant: ...``, EOS after each answer.

    It begins with the BOS token if the tokenizer puts one before texts.
    """
    first = tokenizer("x")["input_ids"][:1]
    bos = "{{ bos_token }}" if first and first == [tokenizer.bos_token_id] else ""
    return bos + _PLAIN
