"""The layout of documents, questions and messages, before any chat template."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """Refuse settings that cannot be rendered.

    Raises:
        ConfigError: If a value is not known or has another type, or a layout has other place holders than it may.
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
    """One text per document, in the renderer's order, numbered from 1: its header, a line break, its text."""
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
    """A document from what a retriever gives: a text, or an object with ``text`` and optionally ``title``, ``score``.

    Raises:
        DataError: If it has no text.
    """
    if isinstance(value, Document):
        return value
    row: Mapping[str, Any] = {"text": value} if isinstance(value, str) else value
    text = row.get("text") if isinstance(row, Mapping) else None
    if not isinstance(text, str):
        raise DataError(f"document {value!r:.80} has no text", "give texts, or objects with a 'text'.")
    return Document(text, row.get("title"), row.get("id"), row.get("score"))


def into_first_user(messages: Sequence[Mapping[str, Any]], text: str) -> list[dict[str, Any]]:
    """The messages with ``text`` and a blank line before the first user message; a user message is made if none is."""
    result = [dict(message) for message in messages]
    for message in result:
        if message.get("role") == "user":
            message["content"] = f"{text}\n\n{message.get('content') or ''}"
            return result
    return [{"role": "user", "content": text}, *result]


def map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """``value`` (JSON) with ``change`` applied to each text in it; keys stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_texts(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [map_texts(item, change) for item in value]
    return value


def answer_texts(answer: str) -> list[str]:
    """An answer's texts and, at the odd places, the tags of a thought that opens it, which are the model's own."""
    parts = split_thought(answer)
    return [answer] if not parts.closing or parts.before.strip() else list(parts)


def texts_of(renderer: Renderer, item: Record | Conversation) -> Iterator[str]:
    """Every text of the item that reaches the prompt or the response."""
    found: list[str] = []
    if isinstance(item, Record):
        found += [item.question, renderer.system if item.system is None else item.system]
        found += answer_texts(item.answers[0] if item.answers else renderer.abstention)[::2]
    else:

        def note(text: str) -> str:
            found.append(text)
            return text

        for message in item.messages:
            if message.get("role") == "assistant" and isinstance(message.get("content"), str):
                found += answer_texts(message["content"])[::2]
                message = {**message, "content": ""}
            map_texts(message, note)
    for entry in item.documents:
        found.append(entry.text)
        if entry.title and renderer.show_titles:
            found.append(entry.title)
    yield from found


def plain_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """A chat template for tokenizers without one: ``User: ...`` and ``Assistant: ...`` lines, EOS after each answer.

    It opens with the token that the tokenizer itself puts before a text, if any.
    """
    first = tokenizer("x")["input_ids"][:1]
    bos = "{{ bos_token }}" if first and first == [tokenizer.bos_token_id] else ""
    return bos + _PLAIN
