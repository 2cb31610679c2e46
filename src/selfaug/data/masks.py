"""Which tokens of a conversation are the assistant's, under any chat template?"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from selfaug.data.template import ChatTemplate, matcher, trim_turn
from selfaug.data.tokens import response_tail, text_ids
from selfaug.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["conversation_labels"]

Span = tuple[int, int]
Messages = Sequence[Mapping[str, Any]]

_GENERATION = re.compile(r"\{%(-|\+)?\s*generation\s*(-|\+)?%\}")
_END = re.compile(r"\{%(-|\+)?\s*endgeneration\s*(-|\+)?%\}")
# Private-use characters, which no sane text holds: they mark places in a rendered text.
_OPEN, _CLOSE, _WORD = "\ue0f3", "\ue0f4", "\ue0f5\ue0f6"
_REMEDY = "give a chat template with {% generation %} around what the assistant writes, or prompt/completion rows."


def conversation_labels(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    tools: Sequence[Any] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[list[int], list[int]]:
    """``input_ids`` and ``labels``: each assistant turn's words and its end of turn keep their ids, the rest is -100.

    Where the template has ``{% generation %}`` markers, they decide. Elsewhere a turn is what the template adds
    between the opening of the assistant's turn (the generation prompt, not labelled) and the turn's end; where a
    template changes earlier turns when later ones come (or refuses part of a conversation), a turn is found by
    rendering the conversation with other words in it. What the template writes after the last end of turn is left
    out, and EOS is added where the last turn does not end with it. Where a token would lie half in a turn, the text
    is tokenised apart there, as it is when the model generates.

    Args:
        tokenizer: Any; its own template is used where ``chat_template`` is ``None``.
        messages: Objects with ``role`` and ``content``, and what the template knows besides.
        tools: JSON schemas for the template.
        documents: Documents for the template.
        chat_template: The template's text, or its name among the tokenizer's.
        chat_template_kwargs: More variables for the template.

    Returns:
        Two lists of the same length; labels are -100 or the id at the same place.

    Raises:
        DataError: If there is no assistant turn or no template, the template refuses the conversation, or its
            assistant turns cannot be told from the rest exactly.
    """
    template = ChatTemplate(tokenizer, chat_template, tools, documents, chat_template_kwargs or {})
    turns = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
    if not turns:
        raise DataError("a conversation has no assistant turn, so there is nothing to train on", "leave it out.")
    marked = _GENERATION.search(template.source) is not None
    text, spans = _marked_spans(template, messages) if marked else _turn_spans(template, messages, turns)
    if not text[spans[-1][1] :].strip():
        text = text[: spans[-1][1]]
    tail = [] if marked or len(text) > spans[-1][1] else response_tail(tokenizer, text)
    ids, places = _tokenise(tokenizer, text, [place for span in spans for place in span])
    labels = [-100] * len(ids)
    for start, end in zip(places[::2], places[1::2], strict=True):
        labels[start:end] = ids[start:end]
    return ids + tail, labels + tail


def _problem(template: ChatTemplate, what: str) -> DataError:
    name = template.tokenizer.name_or_path
    return DataError(f"the chat template of {name!r} {what}, so the assistant's tokens cannot be told exactly", _REMEDY)


def _marked_spans(template: ChatTemplate, messages: Messages) -> tuple[str, list[Span]]:
    """The rendered text and the character spans inside the template's generation markers.

    A mark is written inside each marker, with a block of the marker's own white-space control on its other side, so
    that the template strips the same white space as before. (``return_assistant_tokens_mask`` maps characters to
    tokens by offsets, and loses a turn where a tokenizer trims them.)
    """
    source = _GENERATION.sub(lambda m: f'{m[0]}{{{{ "{_OPEN}" }}}}{{% set _ = 0 {m[2] or ""}%}}', template.source)
    source = _END.sub(lambda m: f'{{%{m[1] or ""} set _ = 0 %}}{{{{ "{_CLOSE}" }}}}{m[0]}', source)
    pieces = re.split(f"([{_OPEN}{_CLOSE}])", template.render(messages, source=source))
    text, spans = "", []
    for i in range(0, len(pieces), 2):
        inside = i > 0 and pieces[i - 1] == _OPEN
        if inside and pieces[i]:
            spans.append((len(text), len(text) + len(pieces[i])))
        text += pieces[i]
    if not spans or text != template.render(messages):
        raise _problem(template, "has {% generation %} markers that mark nothing here")
    return text, spans


def _turn_spans(template: ChatTemplate, messages: Messages, turns: Sequence[int]) -> tuple[str, list[Span]]:
    text = template.render(messages)
    spans: list[Span] = []
    for turn in turns:
        start, end = _prefix_span(template, messages, turn, text) or _changed_span(template, messages, turn, text)
        end = start + len(trim_turn(text[start:end], template.controls))
        last = turn == len(messages) - 1
        if not last and not matcher(template.controls).search(text, start, end):
            end += _late_eos(template, text[end:])
        if start < (spans[-1][1] if spans else 0):
            raise _problem(template, f"writes message {turn} before the one that it follows")
        spans.append((start, end))
    return text, spans


def _late_eos(template: ChatTemplate, rest: str) -> int:
    """The length of an EOS that the template writes only once the next turn begins."""
    eos = template.tokenizer.eos_token
    found = len(rest) - len(rest.lstrip())
    return found + len(eos) if eos and rest.startswith(eos, found) else 0


def _prefix_span(template: ChatTemplate, messages: Messages, turn: int, text: str) -> Span | None:
    """The turn by prefix differences, or ``None`` where the rendered parts are no prefixes of the whole."""
    head = template.try_render(messages[:turn], generation=True)
    whole = template.try_render(messages[: turn + 1])
    if head is None or whole is None or not whole.startswith(head) or not text.startswith(whole):
        return None
    words = str(messages[turn].get("content") or "").strip()
    if not words or words in text[len(head) : len(whole)]:
        return len(head), len(whole)
    # The template changes the words: they must at least be found where the prefixes say.
    start, end = _words_span(template, messages, turn, text)
    return (len(head), len(whole)) if len(head) <= start and end <= len(whole) else None


def _changed_span(template: ChatTemplate, messages: Messages, turn: int, text: str) -> Span:
    """The turn by its words, and what follows them both here and where the turn is the last."""
    start, end = _words_span(template, messages, turn, text)
    whole = template.try_render(messages[: turn + 1])
    tail = (
        template.end_of_turn if whole is None else whole[_words_span(template, messages[: turn + 1], turn, whole)[1] :]
    )
    head = template.try_render(messages[:turn], generation=True)
    if head is not None and len(head) <= start and text.startswith(head):
        start = len(head)
    return start, end + _common(text[end:], tail, template.controls)


def _words_span(template: ChatTemplate, messages: Messages, turn: int, text: str) -> Span:
    """Where the turn's own words stand in ``text``: the part that differs once they are replaced."""
    if any(char in text for char in _WORD):
        raise DataError("a message holds private-use characters (U+E0F5, U+E0F6)", "remove them from the data.")
    changed = [*messages[:turn], _replaced(messages[turn]), *messages[turn + 1 :]]
    other = template.try_render(changed)
    if other is None or _WORD not in other:
        raise _problem(template, f"does not write the words of message {turn}")
    if other.count(_WORD) > json.dumps(changed[turn], ensure_ascii=False, default=str).count(_WORD):
        raise _problem(template, f"writes the words of message {turn} in several places")
    start = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    room = min(len(text), len(other)) - start
    back = zip(reversed(text), reversed(other), strict=False)
    same = next((i for i, (a, b) in enumerate(back) if a != b), room)
    end = len(text) - min(same, room)
    return start, end


def _replaced(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with other words: its content and the values in its tool calls, but not their kinds."""

    def words(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: v if k in ("role", "type", "id") else words(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [words(item) for item in value]
        return _WORD if isinstance(value, str) and value.strip() else value

    return {k: words(v) if k in ("content", "tool_calls") else v for k, v in message.items()}


def _common(text: str, tail: str, controls: tuple[str, ...]) -> int:
    """The length of the common beginning of ``text`` and ``tail``, never ending inside a control string."""
    same = next((i for i, (a, b) in enumerate(zip(text, tail, strict=False)) if a != b), min(len(text), len(tail)))
    for match in matcher(controls).finditer(text):
        if match.start() < same < match.end():
            return match.start()
    return same


def _tokenise(tokenizer: PreTrainedTokenizerBase, text: str, cuts: Sequence[int]) -> tuple[list[int], list[int]]:
    """The ids of ``text`` and, for each cut between characters (ascending), its place between tokens.

    The ids are those of the whole text wherever no token crosses a cut; where one does, the text is tokenised apart.
    """
    done: list[int] = []
    places: list[int] = []
    begin, rest = 0, text_ids(tokenizer, text)
    for cut in cuts:
        before = text_ids(tokenizer, text[begin:cut]) if cut > begin else []
        # A token that crosses this cut: what lies before it is closed, and the rest starts anew.
        if rest[: len(before)] != before:
            if any(place > len(done) and before[: place - len(done)] != rest[: place - len(done)] for place in places):
                raise DataError("a tokenizer that reads a text's beginning by its end has no exact mask", _REMEDY)
            done += before
            begin, rest = cut, text_ids(tokenizer, text[cut:])
            before = []
        places.append(len(done) + len(before))
    return done + rest, places
