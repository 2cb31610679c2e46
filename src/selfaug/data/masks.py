"""Finds the assistant's tokens in conversations under any chat template."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from selfaug.common.errors import DataError
from selfaug.data.record import is_trained
from selfaug.data.template import ChatTemplate, TemplateRefusedError, common_beginning, matcher, opens_again, trim_turn
from selfaug.data.thoughts import FIELDS, after_opening, in_fields, is_closed, split_thought
from selfaug.data.tokens import response_tail, text_ids
from selfaug.data.traced import DOCUMENTS, FIXED, Message, Trace, trace, unseen_tools

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["conversation_labels"]

_GENERATION = re.compile(r"\{%(-|\+)?\s*generation\s*(-|\+)?%\}")
_END = re.compile(r"\{%(-|\+)?\s*endgeneration\s*(-|\+)?%\}")
# Private-use characters, which do not occur in normal text, mark places in a rendered text.
_OPEN, _CLOSE = "\ue0f3", "\ue0f4"
_REMEDY = "give a chat template with {% generation %} around what the assistant writes, or prompt/completion rows."
_LEAVE = "leave such rows out (--on_bad_row skip), or give a chat template that writes it."


class _Turn(NamedTuple):
    """An assistant turn in the rendered text.

    Args:
        start: Index of the first character after the generation prompt.
        end: Index of the first character after the end of turn.
        opened: End of the generation prompt that the template does not write in this turn.
    """

    start: int
    end: int
    opened: str = ""


def conversation_labels(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[Any] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    notes: Counter[str] | None = None,
) -> tuple[list[int], list[int]]:
    """Return ``input_ids`` and ``labels``: the ids for each assistant turn's words and end of turn, -100 elsewhere.

    A turn begins where the generation prompt of that place ends (``add_generation_prompt``), and ends with what the
    template writes after the turn's words. The origin of each character is found by rendering the conversation in other
    letters (:mod:`selfaug.data.traced`): a turn with a character of another message, or without one of its own, is an
    error. ``{% generation %}`` markers can exclude a turn or a part of it, but add nothing to it; only where the bounds
    cannot be found do they decide alone.

    If the generation prompt opens a thought that the template leaves out of the last turn, the text there is the
    generation prompt, the answer's own thought if it has one, and its words. What the template writes after the last
    end of turn is removed, and EOS is added if the last turn does not end with it. Where a token would cross the bounds
    of a turn, the parts are tokenised separately, as in generation.

    Args:
        tokenizer: Tokenizer of the model, whose own template is used where ``chat_template`` is ``None``.
        messages: Objects with ``role``, ``content`` and other keys of the template. Turns with a flag against training
            (:data:`selfaug.data.record.TRAIN_FLAGS`) are not trained. The template gets arguments of tool calls as
            objects or as JSON texts, whichever it writes.
        tools: JSON schemas of tools for the template.
        documents: Documents for the template.
        chat_template: Text of the template, or its name among the tokenizer's.
        chat_template_kwargs: Other variables of the template.
        notes: Counter that is replaced by the counts of ``thoughts_dropped`` (not in the text), ``thoughts_closed``
            (opened by the prompt, for an answer without one) and ``thoughts_unprompted`` (after a prompt that says that
            there is none).

    Returns:
        Two lists of the same length.

    Raises:
        DataError: If there is no assistant turn or no template, the template refuses the conversation or leaves a part
            of it out, or the bounds of assistant turns cannot be found exactly.
    """
    template = ChatTemplate(tokenizer, chat_template, tools, documents, chat_template_kwargs or {})
    turns = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
    if not turns:
        raise DataError("a conversation has no assistant turn, so there is nothing to train on", "leave it out.")
    turns = [i for i in turns if is_trained(messages[i])]
    if not turns:
        raise DataError("a conversation has flags (weight 0, say) against training any assistant turn", "leave it out.")
    written, rendering = _written(template, messages)
    marked = _GENERATION.search(template.source) is not None
    try:
        bounds: dict[int, _Turn] | None = _bounds(rendering, turns)
    except DataError:
        if not marked:
            raise
        bounds = None
    spans = _marked(template, written, rendering, turns, bounds) if marked else bounds or {}
    counts = _check(rendering, spans, whole=not marked)
    text, places = _finish(template, written, rendering.text, spans, counts)
    if notes is not None:
        notes.clear()
        notes.update(+counts)
    last = places[-1]
    if not text[last:].strip():
        text = text[:last]
    tail = [] if len(text) > last else response_tail(tokenizer, text)
    ids, places = _tokenise(tokenizer, text, places)
    labels = [-100] * len(ids)
    for start, end in zip(places[::2], places[1::2], strict=True):
        labels[start:end] = ids[start:end]
    return ids + tail, labels + tail


def _problem(template: ChatTemplate, what: str) -> DataError:
    name = template.tokenizer.name_or_path
    return DataError(f"the chat template of {name!r} {what}, so the assistant's tokens cannot be told exactly", _REMEDY)


def _left_out(template: ChatTemplate, what: str) -> DataError:
    name = template.tokenizer.name_or_path
    return DataError(f"the chat template of {name!r} leaves out {what}, so the model would not see it", _LEAVE)


def _written(template: ChatTemplate, messages: Sequence[Message]) -> tuple[Sequence[Message], Trace]:
    """Return the messages in the form in which the template writes all of them, and their trace."""
    refused: DataError | None = None
    for form in _forms(messages):
        try:
            rendering = _traced_whole(template, form)
        except DataError as error:
            # An error that something is missing is more helpful than one that another form is refused.
            if refused is None or (isinstance(refused, TemplateRefusedError) > isinstance(error, TemplateRefusedError)):
                refused = error
        else:
            return _with_thoughts(template, form, rendering)
    assert refused is not None
    raise refused


def _traced_whole(template: ChatTemplate, messages: Sequence[Message]) -> Trace:
    unseen = unseen_tools(template, messages)
    if unseen is not None:
        raise _left_out(template, unseen)
    rendering = trace(template, messages)
    _require_all(rendering, messages)
    return rendering


def _with_thoughts(
    template: ChatTemplate, messages: Sequence[Message], rendering: Trace
) -> tuple[Sequence[Message], Trace]:
    """Move thoughts into a field of their own if the template writes that field differently from ``<think>`` tags."""
    moved = [in_fields(message) for message in messages]
    if moved == list(messages):
        return messages, rendering
    try:
        other = _traced_whole(template, moved)
    except DataError:
        return messages, rendering

    def thoughts_in(trace: Trace) -> int:
        counts = np.bincount(trace.codes[trace.codes >= 0], minlength=len(trace.texts))
        return sum(text.kind == "thought" and count > 0 for text, count in zip(trace.texts, counts, strict=True))

    same = "".join(other.text.split()) == "".join(rendering.text.split())
    return (messages, rendering) if same or thoughts_in(other) < thoughts_in(rendering) else (moved, other)


def _forms(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """Yield the messages with arguments of tool calls as objects, which most templates take, and as JSON texts."""
    if not any(message.get("tool_calls") for message in messages):
        yield list(messages)
        return
    for as_text in (False, True):
        yield [
            {**message, "tool_calls": [_call(call, as_text) for call in message["tool_calls"]]}
            if message.get("tool_calls")
            else message
            for message in messages
        ]


def _call(call: Any, as_text: bool) -> Any:
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _call(call["function"], as_text)}
    arguments = call.get("arguments")
    if isinstance(arguments, str) and not as_text:
        try:
            read = json.loads(arguments)
        except (ValueError, RecursionError):
            return dict(call)
        return {**call, "arguments": read} if isinstance(read, dict) else dict(call)
    if isinstance(arguments, Mapping) and as_text:
        return {**call, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return dict(call)


def _require_all(rendering: Trace, messages: Sequence[Message]) -> None:
    """Refuse a text in which words or tool calls of any message are missing; thoughts may be missing."""
    counts = np.bincount(rendering.codes[rendering.codes >= 0], minlength=len(rendering.texts))
    for text, count in zip(rendering.texts, counts, strict=True):
        if text.kind != "thought" and count < text.size:
            raise _left_out(rendering.template, text.name if count == 0 else f"a part of {text.name}")
    for _, name in rendering.hidden:
        raise _left_out(rendering.template, name)
    for place, message in enumerate(messages):
        for call in message.get("tool_calls") or ():
            arguments = (call.get("function") or call).get("arguments") if isinstance(call, Mapping) else None
            if isinstance(arguments, Mapping) and str(arguments) in rendering.text and len(arguments):
                written = json.dumps(arguments, ensure_ascii=False)
                if written != str(arguments) and written not in rendering.text:
                    raise _problem(
                        rendering.template, f"writes the arguments of message {place} as Python, not as JSON"
                    )


def _bounds(rendering: Trace, turns: Sequence[int]) -> dict[int, _Turn]:
    """Return the turns as bounded by what the template writes before and after them."""
    bounds: dict[int, _Turn] = {}
    counts = np.bincount(rendering.codes[rendering.codes >= 0], minlength=len(rendering.texts))
    for text, count in zip(rendering.texts, counts, strict=True):
        if text.message in turns and text.kind in ("words", "argument") and count > text.size:
            raise _problem(rendering.template, f"writes {text.name} in several places")
    before = 0
    for turn in turns:
        own = np.flatnonzero(rendering.owner == turn)
        if not own.size:
            raise _left_out(rendering.template, f"the words of message {turn}")
        words = own[[rendering.texts[code].kind != "name" for code in rendering.codes[own]]]
        between = rendering.owner[int(words[0]) : int(words[-1])] if words.size else rendering.owner[:0]
        _refuse_others(rendering, turn, between)
        start, opened = _start(rendering, turn, int(own[0]))
        end = _end(rendering, turn, int(own[0]), int(own[-1]) + 1)
        end = start + len(trim_turn(rendering.text[start:end], rendering.template.controls))
        if turn < len(rendering.messages) - 1 and not matcher(rendering.template.controls).search(
            rendering.text, start, end
        ):
            end += _late_eos(rendering.template, rendering.text[end:])
        if start < before:
            raise _problem(rendering.template, f"writes message {turn} before the one that it follows")
        bounds[turn] = _Turn(start, end, opened)
        before = end
    return bounds


def _start(rendering: Trace, turn: int, first: int) -> tuple[int, str]:
    """Return the end of the generation prompt before a turn, and the part of it that is not in the text there."""
    head = rendering.template.try_render(rendering.messages[:turn], generation=True)
    if head is not None and rendering.traced.startswith(head) and len(head) <= first:
        return len(head), ""
    others = np.flatnonzero(rendering.owner[:first] != FIXED)
    at = int(others[-1]) + 1 if others.size else 0
    between = rendering.traced[at : first + 1]
    header = _header(rendering)
    if head is None:
        # The template refuses the conversation before this turn.
        if not header or between.count(header) != 1:
            raise _problem(rendering.template, f"does not open message {turn} as it opens a generation prompt")
        return at + between.index(header) + len(header), ""
    codes = rendering.codes_of(head)
    known = np.flatnonzero(codes != FIXED)
    prompt = head[int(known[-1]) + 1 if known.size else 0 :]
    if known.size and others.size and codes[known[-1]] != rendering.codes[at - 1]:
        raise _problem(
            rendering.template, f"writes something else before message {turn} than before its generation prompt"
        )
    shared = common_beginning(prompt, between, rendering.template.controls)
    base = rendering.template.try_render(rendering.messages[:turn])
    added = head[len(base) :] if base is not None and head.startswith(base) else header or ""
    of_header = prompt[max(len(prompt) - len(added), 0) : shared]
    if added.strip() and not of_header.strip():
        raise _problem(rendering.template, f"does not open message {turn} as it opens a generation prompt")
    return at + shared, prompt[shared:]


def _header(rendering: Trace) -> str | None:
    """Return what the template adds to a question for ``add_generation_prompt``; ``None`` where it is unknown."""
    template = rendering.template

    def added(messages: Sequence[Message]) -> str | None:
        base, head = template.try_render(messages), template.try_render(messages, generation=True)
        return head[common_beginning(base, head, template.controls) :] if base is not None and head else None

    header: str | None = template.once("header", lambda: added([{"role": "user", "content": "x"}]))
    return header if header is not None else added(rendering.messages)


def _end(rendering: Trace, turn: int, first: int, behind: int) -> int:
    """Return the end of a turn: the end of what follows its words both here and where the turn is the last.

    Args:
        rendering: Trace of the conversation.
        turn: Index of the turn's message.
        first: Index of its first character.
        behind: Index after its last character, which may be that of a name repeated in the header of a tool's message.
    """
    template = rendering.template
    if turn == len(rendering.messages) - 1:
        _refuse_opening(rendering, first, rendering.traced[behind:], turn)
        return len(rendering.traced)
    others = np.flatnonzero((rendering.owner[first:] != FIXED) & (rendering.owner[first:] != turn))
    until = first + int(others[0]) if others.size else len(rendering.traced)
    behind = first + int(np.flatnonzero(rendering.owner[first:until] == turn)[-1]) + 1
    part = 0
    for generation in (False, True):
        whole = template.try_render(rendering.messages[: turn + 1], generation=generation)
        if whole is None:
            continue
        codes = rendering.codes_of(whole)
        own = np.flatnonzero(codes != FIXED)
        if not own.size or rendering.texts[codes[own[-1]]].message != turn:
            continue
        tail = whole[int(own[-1]) + 1 :]
        # The text that comes last where the turn is the last one, and the end of the same text here.
        last = codes[own[-1]]
        same = np.flatnonzero(rendering.codes[first:until] == last)
        count = int(np.count_nonzero(codes == last))
        at = first + int(same[count - 1]) + 1 if same.size >= count else behind
        if generation:
            header = _header(rendering)
            if not header or not tail.endswith(header):
                continue
            tail = tail[: -len(header)]
        else:
            _refuse_opening(rendering, first, tail, turn)
        shared = common_beginning(tail, rendering.traced[at:until], template.controls)
        if shared >= len(tail.rstrip()):
            return at + shared
        if not generation and matcher(template.controls).search(tail, 0, shared):
            part = at + shared
    if not part:
        raise _problem(template, f"ends message {turn} otherwise where another one follows")
    return part


def _refuse_opening(rendering: Trace, first: int, tail: str, turn: int) -> None:
    """Refuse a template that opens the next turn after a conversation's end without ``add_generation_prompt``."""
    if opens_again(
        rendering.traced[:first], tail, rendering.template.controls, rendering.template.tokenizer.eos_token
    ) and not _header(rendering):
        raise _problem(rendering.template, f"opens another turn behind message {turn} without being asked to")


def _late_eos(template: ChatTemplate, rest: str) -> int:
    """Return the length of an EOS, with spaces before it, that the template writes only before a next turn; or 0."""
    eos = template.tokenizer.eos_token
    spaces = len(rest) - len(rest.lstrip())
    return spaces + len(eos) if eos and rest.startswith(eos, spaces) else 0


def _marked(
    template: ChatTemplate,
    messages: Sequence[Message],
    rendering: Trace,
    turns: Sequence[int],
    bounds: Mapping[int, _Turn] | None,
) -> dict[int, _Turn]:
    """Return the part of each turn inside the template's generation markers, within its bounds where they are known.

    A mark is written inside each marker, with a block of the marker's own white-space control on its other side, so
    that the template strips the same white space as before. (``return_assistant_tokens_mask`` is not used, since it
    maps characters to tokens by offsets, and loses a turn where a tokenizer trims them.)
    """
    source = _GENERATION.sub(lambda m: f'{m[0]}{{{{ "{_OPEN}" }}}}{{% set _ = 0 {m[2] or ""}%}}', template.source)
    source = _END.sub(lambda m: f'{{%{m[1] or ""} set _ = 0 %}}{{{{ "{_CLOSE}" }}}}{m[0]}', source)
    pieces = re.split(f"([{_OPEN}{_CLOSE}])", template.render(messages, source=source))
    marks, length = [], 0
    for i in range(0, len(pieces), 2):
        if i > 0 and pieces[i - 1] == _OPEN and pieces[i]:
            marks.append((length, length + len(pieces[i])))
        length += len(pieces[i])
    if "".join(pieces[::2]) != rendering.text:
        raise _problem(template, "writes something else with marks in its {% generation %} blocks")
    spans: dict[int, _Turn] = {}
    for start, end in marks:
        end = start + len(trim_turn(rendering.text[start:end], template.controls))
        owners = rendering.owner[start:end]
        for turn in turns if bounds is not None else set(owners.tolist()) & set(turns):
            own = bounds[turn] if bounds is not None else _Turn(start, end)
            low, high = max(start, own.start), min(end, own.end)
            if low >= high:
                continue
            if turn in spans and np.any(rendering.owner[spans[turn].end : low] != FIXED):
                raise _problem(template, f"has {{% generation %}} markers in several parts of message {turn}")
            begin = spans[turn].start if turn in spans else low
            spans[turn] = _Turn(begin, high, own.opened if begin == own.start else "")
    if not spans:
        raise _problem(template, "has {% generation %} markers that mark nothing here")
    return dict(sorted(spans.items(), key=lambda item: item[1].start))


def _check(rendering: Trace, spans: Mapping[int, _Turn], *, whole: bool) -> Counter[str]:
    """Refuse turns with characters of other messages or, if ``whole``, without all of their own; count the thoughts."""
    notes: Counter[str] = Counter()
    counts = np.bincount(rendering.codes[rendering.codes >= 0], minlength=len(rendering.texts))
    before = 0
    for turn, span in spans.items():
        owners, codes = rendering.owner[span.start : span.end], rendering.codes[span.start : span.end]
        _refuse_others(rendering, turn, owners)
        if span.start < before:
            raise _problem(rendering.template, f"writes message {turn} before the one that it follows")
        if not np.any(owners == turn):
            raise _left_out(rendering.template, f"all words of message {turn}")
        before = span.end
        inside = np.bincount(codes[codes >= 0], minlength=len(rendering.texts))
        for i, text in enumerate(rendering.texts):
            if text.message != turn or not text.size:
                continue
            if text.kind == "thought" and not counts[i]:
                notes["thoughts_dropped"] += 1
            elif whole and (inside[i] < text.size or (text.kind != "name" and counts[i] > inside[i])):
                raise _problem(rendering.template, f"writes {text.name} outside of its turn")
            elif text.kind == "thought" and is_closed(span.opened):
                notes["thoughts_unprompted"] += 1
    return notes


def _refuse_others(rendering: Trace, turn: int, owners: NDArray[np.int64]) -> None:
    others = owners[(owners != FIXED) & (owners != turn)]
    if others.size:
        which = "a document or tool result" if others[0] == DOCUMENTS else f"message {others[0]}"
        raise _problem(rendering.template, f"writes {which} inside message {turn}")


def _finish(
    template: ChatTemplate,
    messages: Sequence[Message],
    text: str,
    spans: Mapping[int, _Turn],
    notes: Counter[str],
) -> tuple[str, list[int]]:
    """Return the text with the whole generation prompt before its last turn, and the bounds of the turns in it."""
    places = [place for span in spans.values() for place in (span.start, span.end)]
    turn = list(spans)[-1]
    span = spans[turn]
    if not span.opened or turn < len(messages) - 1 or notes["thoughts_unprompted"]:
        return text, places
    message = messages[turn]
    thought = split_thought(str(message.get("content") or "")).thought or next(
        (message[key] for key in FIELDS if isinstance(message.get(key), str)), ""
    )
    response = after_opening(span.opened, text[span.start : span.end], thought)
    if response is None:
        raise _problem(template, f"does not write {span.opened!r}, with which its generation prompt ends, in a turn")
    if span.opened.strip() and not is_closed(span.opened):
        # The thought was counted as dropped, and is in the text again; or there was none.
        notes["thoughts_dropped" if thought.strip() else "thoughts_closed"] += -1 if thought.strip() else 1
    text = text[: span.start] + span.opened + response
    return text, [*places[:-2], span.start + len(span.opened), len(text)]


def _tokenise(tokenizer: PreTrainedTokenizerBase, text: str, cuts: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the ids of ``text``, and the place between tokens of each cut between characters (ascending).

    The ids are those of the whole text, unless a token crosses a cut: then the parts are tokenised separately.
    """
    done: list[int] = []
    places: list[int] = []
    begin, rest = 0, text_ids(tokenizer, text)
    for cut in cuts:
        before = text_ids(tokenizer, text[begin:cut]) if cut > begin else []
        # If a token crosses this cut, the text is tokenised separately before and after it.
        if rest[: len(before)] != before:
            if any(place > len(done) and before[: place - len(done)] != rest[: place - len(done)] for place in places):
                raise DataError("a tokenizer that reads a text's beginning by its end has no exact mask", _REMEDY)
            done += before
            begin, rest = cut, text_ids(tokenizer, text[cut:])
            before = []
        places.append(len(done) + len(before))
    return done + rest, places
