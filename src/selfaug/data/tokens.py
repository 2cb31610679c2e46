"""Turns a record into prompt and response token ids."""

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
    """Token ids of a record's prompt and response, and the counts that :func:`record_tokens` puts into its notes."""

    prompt: list[int]
    response: list[int]
    notes: Counter[str]


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, bos: bool = False) -> list[int]:
    """The token ids of ``text`` as it stands; with ``bos`` after what the tokenizer puts first, never an EOS last.

    A tokenizer that is set to add an EOS to each text would otherwise end the prompt before the answer.
    """
    return _texts_ids(tokenizer, [text], bos=bos)[0]


def _texts_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, bos: bool) -> list[list[int]]:
    """:func:`text_ids` of each text, in one call of the tokenizer."""
    if not texts:
        return []
    rows: list[list[int]] = tokenizer(texts, add_special_tokens=bos, return_attention_mask=False)["input_ids"]
    return [ids[:-1] if bos and ids and ids[-1] == tokenizer.eos_token_id else ids for ids in rows]


def ends_generation(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether ``text`` ends with the token that stops generation, or the tokenizer knows none."""
    return tokenizer.eos_token is None or text.rstrip().endswith(tokenizer.eos_token)


def response_tail(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The EOS that must still follow ``text`` so that a tuned model stops: ``[eos_token_id]``, or nothing.

    A template's own end of turn may not be the token that stops generation: a base model with a chat template, say.
    """
    return [] if ends_generation(tokenizer, text) else [int(tokenizer.eos_token_id)]


def record_tokens(
    renderer: Renderer,
    tokenizer: PreTrainedTokenizerBase,
    record: Record,
    documents: Sequence[Document] | None = None,
    notes: Counter[str] | None = None,
) -> tuple[list[int], list[int]]:
    """The ids of the inference prompt and of the response with its end of turn.

    The response's ids are those in the joint text where the prompt's ids are a prefix of it, else those of the
    response tokenised apart. It ends with what the chat template writes after an assistant turn, and with EOS. Where
    the prompt opens a thought, it begins with the answer's own, or closes it at once.

    Args:
        renderer: Makes the prompt.
        tokenizer: The one that ``renderer`` was made for.
        record: Its first answer is the response.
        documents: Instead of the record's own.
        notes: Cleared, and given the counts of ``thoughts_dropped`` and ``thoughts_closed``, as
            :func:`selfaug.data.masks.conversation_labels` gives them.

    Raises:
        ConfigError: If the tokenizer has another chat template than the renderer's.
        DataError: If the template refuses the record or does not show the answer, or there is no EOS.
    """
    found: Counter[str] = Counter()
    texts = _texts(renderer, tokenizer, record, documents, found)
    ((prompt_ids, response_ids),) = _ids(renderer, tokenizer, [texts])
    if notes is not None:
        notes.clear()
        notes.update(found)
    return prompt_ids, response_ids


def tokens_of_records(
    renderer: Renderer, tokenizer: PreTrainedTokenizerBase, records: Iterable[Record]
) -> list[RecordTokens | DataError]:
    """What :func:`record_tokens` gives for each record, or raises; the tokenizer is called once for all.

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
    ids = iter(_ids(renderer, tokenizer, [found[0] for found in results if not isinstance(found, DataError)]))
    return [found if isinstance(found, DataError) else RecordTokens(*next(ids), found[1]) for found in results]


def _texts(
    renderer: Renderer,
    tokenizer: PreTrainedTokenizerBase,
    record: Record,
    documents: Sequence[Document] | None,
    notes: Counter[str],
) -> tuple[str, str]:
    """Prompt and response."""
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
    """The ids of prompts and their responses."""
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
    messages, said = renderer.messages(record, documents), {"role": "assistant", "content": answer}
    whole = template.render([*messages, said])
    parts = split_thought(answer)
    if parts.thought.strip():
        # As in conversations: a template's own way of writing thoughts goes before `<think>` in the words.
        moved = template.try_render([*messages, in_fields(said)])
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
        # The template leaves the answer out, or the prompt holds what it leaves out of finished turns.
        response = answer + end
    notes["thoughts_dropped"] += bool(parts.thought.strip()) and parts.thought.strip() not in response
    return response


def aligned_tokens(labels: ArrayLike) -> int:
    """The number of t with ``labels[t] == -100`` and ``labels[t + 1] == -100``: prompt tokens predicted from prompt.

    For a single unpadded, unpacked sequence this counts its aligned positions.
    """
    prompt = np.asarray(labels) == -100
    return int(np.count_nonzero(prompt[1:] & prompt[:-1]))
