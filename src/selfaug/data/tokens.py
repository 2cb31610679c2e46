"""Turns records into the token ids of prompts and responses."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from selfaug.common.errors import DataError
from selfaug.data.record import Document, Record
from selfaug.data.template import ChatTemplate, common_beginning, trim_turn
from selfaug.data.thoughts import after_opening, in_fields, is_closed, split_thought

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selfaug.data.prompts import Renderer

__all__ = [
    "RecordTokens", "aligned_tokens", "ends_generation", "record_tokens", "response_tail", "text_ids",
    "tokens_of_records",
]  # fmt: skip


class RecordTokens(NamedTuple):
    """Token ids of a record's prompt and response, and the counts of :func:`record_tokens`."""

    prompt: list[int]
    response: list[int]
    notes: Counter[str]


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, bos: bool = False) -> list[int]:
    """Return the token ids of ``text``; with ``bos`` after the tokenizer's BOS, if it adds one.

    An EOS that the tokenizer adds is removed, since it would end the prompt before the answer.
    """
    return _texts_ids(tokenizer, [text], bos=bos)[0]


def _texts_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, bos: bool) -> list[list[int]]:
    """Return the :func:`text_ids` of each text, in one call of the tokenizer."""
    if not texts:
        return []
    rows: list[list[int]] = tokenizer(texts, add_special_tokens=bos, return_attention_mask=False)["input_ids"]
    return [ids[:-1] if bos and ids and ids[-1] == tokenizer.eos_token_id else ids for ids in rows]


def ends_generation(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Tell whether ``text`` ends with the token that stops generation, or the tokenizer has none."""
    return tokenizer.eos_token is None or text.rstrip().endswith(tokenizer.eos_token)


def response_tail(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the EOS that must follow ``text`` so that a tuned model stops: ``[eos_token_id]``, or nothing.

    The template's end of turn may not be the token that stops generation, as in base models with a chat template.
    """
    return [] if ends_generation(tokenizer, text) else [int(tokenizer.eos_token_id)]


def record_tokens(
    renderer: Renderer,
    tokenizer: PreTrainedTokenizerBase,
    record: Record,
    documents: Sequence[Document] | None = None,
    notes: Counter[str] | None = None,
) -> tuple[list[int], list[int]]:
    """Return the ids of the inference prompt, and those of the response with its end of turn.

    The response's ids are those in the joint text if its ids begin with the prompt's, else those of the response
    alone. The response ends with what the chat template writes after an assistant turn, and with EOS. If the prompt
    opens a thought, the response continues it with the answer's own thought, or closes it at once.

    Args:
        renderer: Renderer of the prompt.
        tokenizer: Tokenizer that ``renderer`` was made for.
        record: Record, whose first answer is the response.
        documents: Documents in place of the record's own.
        notes: Counter that is replaced by the counts of ``thoughts_dropped`` and ``thoughts_closed``; see
            :func:`selfaug.data.masks.conversation_labels`.

    Raises:
        ConfigError: If the tokenizer has another chat template than the renderer's.
        DataError: If the template refuses the record or leaves out the answer, or there is no EOS.
    """
    counts: Counter[str] = Counter()
    texts = _texts(renderer, tokenizer, record, documents, counts)
    ((prompt_ids, response_ids),) = _ids(renderer, tokenizer, [texts])
    if notes is not None:
        notes.clear()
        notes.update(counts)
    return prompt_ids, response_ids


def tokens_of_records(
    renderer: Renderer, tokenizer: PreTrainedTokenizerBase, records: Iterable[Record]
) -> list[RecordTokens | DataError]:
    """Return the tokens of :func:`record_tokens`, or its error, for each record, in one call of the tokenizer.

    Raises:
        ConfigError: If the tokenizer has another chat template than the renderer's.
    """
    results: list[tuple[tuple[str, str], Counter[str]] | DataError] = []
    for record in records:
        notes: Counter[str] = Counter()
        try:
            results.append((_texts(renderer, tokenizer, record, None, notes), notes))
        except DataError as error:
            results.append(error)
    ids = iter(_ids(renderer, tokenizer, [result[0] for result in results if not isinstance(result, DataError)]))
    return [result if isinstance(result, DataError) else RecordTokens(*next(ids), result[1]) for result in results]


def _texts(
    renderer: Renderer,
    tokenizer: PreTrainedTokenizerBase,
    record: Record,
    documents: Sequence[Document] | None,
    notes: Counter[str],
) -> tuple[str, str]:
    """Return the texts of prompt and response."""
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"tokenizer {tokenizer.name_or_path!r} has no EOS token, so a tuned model would never stop",
            "set tokenizer.eos_token.",
        )
    prompt = renderer.prompt_text(tokenizer, record, documents)
    return prompt, _response(renderer, tokenizer, record, documents, prompt, notes)


def _ids(
    renderer: Renderer, tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, str]]
) -> list[tuple[list[int], list[int]]]:
    """Return the ids of prompts and their responses."""
    plain = renderer.mode == "plain"
    joint = [prompt + response for prompt, response in texts]
    ids = _texts_ids(tokenizer, [*(prompt for prompt, _ in texts), *joint], bos=plain)
    rows = []
    for (_, response), prompt_ids, joint_ids in zip(texts, ids[: len(texts)], ids[len(texts) :], strict=True):
        if joint_ids[: len(prompt_ids)] == prompt_ids and len(joint_ids) > len(prompt_ids):
            response_ids = joint_ids[len(prompt_ids) :]
        else:
            response_ids = text_ids(tokenizer, response)
        rows.append((prompt_ids, response_ids + response_tail(tokenizer, response)))
    return rows


def _response(
    renderer: Renderer,
    tokenizer: PreTrainedTokenizerBase,
    record: Record,
    documents: Sequence[Document] | None,
    prompt: str,
    notes: Counter[str],
) -> str:
    answer = renderer.response_text(record)
    if renderer.mode == "plain":
        return f" {answer}"
    template = ChatTemplate(tokenizer, renderer.chat_template, kwargs=renderer.chat_template_kwargs)
    messages, turn_message = renderer.messages(record, documents), {"role": "assistant", "content": answer}
    whole = template.render([*messages, turn_message])
    parts = split_thought(answer)
    if parts.thought.strip():
        # As in conversations, a template's own way of writing thoughts is preferred to `<think>` tags.
        moved = template.try_render([*messages, in_fields(turn_message)])
        if moved and parts.thought.strip() in moved and "".join(moved.split()) != "".join(whole.split()):
            whole = moved
    start = len(prompt) if whole.startswith(prompt) else common_beginning(prompt, whole, template.controls)
    opened, turn = prompt[start:], trim_turn(whole[start:], template.controls)
    end = renderer.end_of_turn
    response: str | None = turn
    if opened:
        if is_closed(opened) and parts.thought.strip() and parts.thought.strip() in turn:
            turn = parts.words.strip() + end
        elif turn.strip() == end.strip():
            turn = parts.words + end
        response = after_opening(opened, turn, parts.thought)
        if response is None and re.search(r"think|thought|reason|analysis", opened, re.IGNORECASE):
            raise DataError(
                f"the chat template of {tokenizer.name_or_path!r} ends its generation prompt with {opened!r}, which it "
                "does not write before an answer, so the answer would be trained inside a thought",
                "set the variable of the template that leaves it out, say `enable_thinking: false` in its kwargs.",
            )
        opens = bool(opened.strip()) and not is_closed(opened)
        notes["thoughts_closed"] += response is not None and opens and not parts.closing
    if response is None or response.strip() == end.strip():
        # The template leaves the answer out, or the prompt has something that it leaves out of finished turns.
        response = answer + end
    notes["thoughts_dropped"] += bool(parts.thought.strip()) and parts.thought.strip() not in response
    return response


def aligned_tokens(labels: ArrayLike) -> int:
    """``labels[t] == labels[t + 1] == -100``: the number of such t, the aligned positions of one unpadded sequence."""
    prompt = np.asarray(labels) == -100
    return int(np.count_nonzero(prompt[1:] & prompt[:-1]))
