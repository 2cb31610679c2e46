"""How does a record become prompt and response token ids?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from selfaug.data.record import Document, Record
from selfaug.data.template import ChatTemplate, trim_turn
from selfaug.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selfaug.data.prompts import Renderer

__all__ = ["aligned_tokens", "ends_generation", "record_tokens", "response_tail", "text_ids"]


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, bos: bool = False) -> list[int]:
    """The token ids of ``text`` as it stands; with ``bos`` after what the tokenizer puts first, never an EOS last.

    A tokenizer that is set to add an EOS to each text would otherwise end the prompt before the answer.
    """
    ids: list[int] = tokenizer(text, add_special_tokens=bos)["input_ids"]
    if bos and ids and ids[-1] == tokenizer.eos_token_id:
        return ids[:-1]
    return ids


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
) -> tuple[list[int], list[int]]:
    """The ids of the inference prompt and of the response with its end of turn.

    The response's ids are those in the joint text where the prompt's ids are a prefix of it, else those of the
    response tokenised apart. It ends with what the chat template writes after an assistant turn, and with EOS.

    Raises:
        ConfigError: If the tokenizer has another chat template than the renderer's.
        DataError: If the template refuses the record or does not show the answer, or there is no EOS.
    """
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"tokenizer {tokenizer.name_or_path!r} has no EOS token, so a tuned model would never stop",
            "set tokenizer.eos_token.",
        )
    prompt = renderer.prompt_text(tokenizer, record, documents)
    response = _response(renderer, tokenizer, record, documents, prompt)
    plain = renderer.mode == "plain"
    prompt_ids = text_ids(tokenizer, prompt, bos=plain)
    joint_ids = text_ids(tokenizer, prompt + response, bos=plain)
    if joint_ids[: len(prompt_ids)] == prompt_ids and len(joint_ids) > len(prompt_ids):
        response_ids = joint_ids[len(prompt_ids) :]
    else:
        response_ids = text_ids(tokenizer, response)
    return prompt_ids, response_ids + response_tail(tokenizer, response)


def _response(
    renderer: Renderer,
    tokenizer: PreTrainedTokenizerBase,
    record: Record,
    documents: Sequence[Document] | None,
    prompt: str,
) -> str:
    answer = renderer.response_text(record)
    if renderer.mode == "plain":
        return f" {answer}"
    template = ChatTemplate(tokenizer, renderer.chat_template, kwargs=renderer.chat_template_kwargs)
    turns = [*renderer.messages(record, documents), {"role": "assistant", "content": answer}]
    whole = template.render(turns)
    if whole.startswith(prompt):
        turn = trim_turn(whole[len(prompt) :], template.controls)
        if turn.strip() != renderer.end_of_turn.strip():
            return turn
    # The inference prompt holds what the template leaves out of finished turns (an opened <think>), or the answer is
    # what it leaves out (a thought alone).
    return answer + renderer.end_of_turn


def aligned_tokens(labels: Sequence[int]) -> int:
    """The number of t with ``labels[t] == -100`` and ``labels[t + 1] == -100``: prompt tokens predicted from prompt.

    For a single unpadded, unpacked sequence this counts its aligned positions.
    """
    return sum(now == -100 and then == -100 for now, then in pairwise(labels))
