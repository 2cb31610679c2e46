"""Rows of the probe of general ability: prompts, and the answers that the base gives to them before the first step.

A row has ``input_ids`` and ``labels``, which are -100 except for the answer.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from selfaug.before.generated_rows import writer_of
from selfaug.common.errors import DataError
from selfaug.common.terminal import is_main, say
from selfaug.data.fields import Fields
from selfaug.data.files import data_files, iter_rows
from selfaug.data.fit import fit_record
from selfaug.data.formats import FORMATS
from selfaug.data.read import read_rows
from selfaug.data.record import Conversation, Record
from selfaug.data.template import ChatTemplate
from selfaug.data.tokens import text_ids
from selfaug.generation.requests import Request
from selfaug.planning.plan import IGNORED

if TYPE_CHECKING:
    from selfaug.before.context import BeforeTraining
    from selfaug.generation.requests import Reply
    from selfaug.generation.writer import Writer

__all__ = ["GENERAL", "answered_rows", "probe_path"]

GENERAL = "general"
_ITEMS, _LENGTH = 64, 64
_Row = dict[str, list[int]]


def probe_path(value: str) -> Path | None:
    """Return the file that ``--probe`` names; ``None`` for the prompts that come along."""
    return None if value == GENERAL else Path(value).expanduser()


def answered_rows(before: BeforeTraining, value: str) -> list[_Row]:
    """Return the rows of ``--probe``: at most 64 prompts with the base's greedy answers of at most 64 tokens.

    Of a longer file prompts are drawn, the same for every run. Answers are kept in the folder of the checkpoints, so
    that a resumed run measures the same ones.

    Args:
        before: Run before its first step.
        value: ``general``, or a file of prompts: conversations up to their first answer, or records.

    Raises:
        DataError: If the file has no prompt, or no prompt with an answer fits ``max_length``.
    """
    items = _items(probe_path(value))
    if len(items) > _ITEMS:
        items = [items[place] for place in sorted(random.Random(0).sample(range(len(items)), _ITEMS))]
    if is_main():
        say("the base answers the prompts of the probe ...")
    writer = writer_of(before)
    prompts = [_messages(item, writer) for item in items]
    texts = [_text(prompt, writer) for prompt in prompts]
    chat = writer.renderer.mode == "chat"
    requests = [
        Request(messages=tuple(prompt), length=_LENGTH) if chat else Request(text=text, length=_LENGTH)
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    with before.autocast():
        replies = writer.write(requests, "answers of the probe")
    rows = [_row(text, reply, writer) for text, reply in zip(texts, replies, strict=True)]
    kept = [row for row in rows if row is not None]
    listed = [
        Conversation((*prompt, {"role": "assistant", "content": reply.text}))
        for prompt, reply, row in zip(prompts, replies, rows, strict=True)
        if row is not None
    ]
    writer.report("probe", {"kept": len(kept), "left_out": len(rows) - len(kept)}, listed)
    if not kept:
        raise DataError(
            f"probe={value!r}: the base answers none of {len(rows)} prompts with a word that fits "
            f"max_length={before.max_length}.",
            "give a file of prompts that it answers: --probe FILE.",
        )
    return kept


def _items(path: Path | None) -> list[Any]:
    """Return records, conversations, or rows of trl's with a ``prompt``."""
    if path is None:
        text = (files("selfaug.data") / "general_prompts.yaml").read_text(encoding="utf-8")
        return [Conversation(({"role": "user", "content": prompt},)) for prompt in yaml.safe_load(text)]
    alone = _prompts_alone(path)
    if alone:
        return alone
    loaded = read_rows(path, needs_documents=False)
    if loaded.kind == "trl" and any("prompt" not in row for row in loaded.items if isinstance(row, dict)):
        raise DataError(
            f"probe={str(path)!r} holds rows without a prompt, and the base is to answer some.",
            'give rows {"prompt": "..."}, conversations (`messages`) or records.',
        )
    return list(loaded.items)


def _prompts_alone(path: Path) -> list[Any]:
    """Return the rows of a file of prompts without completions, which no format of training data is; else none.

    Raises:
        RowError: If a prompt is neither text nor messages.
    """
    found = []
    for where, row in (entry for file in data_files(path) for entry in iter_rows(file)):
        if not isinstance(row, Mapping) or "prompt" not in row or any(one.matches(row) for one in FORMATS.values()):
            return []
        fields = Fields(row, where)
        if isinstance(row["prompt"], list):
            messages = fields.objects("prompt", "messages")
            if not messages:
                raise fields.error("prompt", "text, or a list of messages with one at least")
            for message in messages:
                message.text("role")
                message.text("content")
        else:
            fields.text("prompt")
        found.append({"prompt": row["prompt"]})
    return found


def _messages(item: Any, writer: Writer) -> list[dict[str, Any]]:
    """Return the messages before the first answer."""
    renderer = writer.renderer
    if isinstance(item, Record):
        fitted = fit_record(item, renderer, writer.tokenizer, writer.max_length if item.documents else None)
        return renderer.messages(item, item.documents if fitted is None else fitted.kept_documents)
    if isinstance(item, dict):
        given = item["prompt"]
        messages = [{"role": "user", "content": given}] if isinstance(given, str) else list(given)
        item = Conversation(tuple(messages))
    first = next((t for t, m in enumerate(item.messages) if m["role"] == "assistant"), len(item.messages))
    # Templates place documents themselves only in a whole conversation.
    return replace(renderer, template_documents=False).conversation_messages(
        replace(item, messages=item.messages[:first])
    )


def _text(messages: Sequence[dict[str, Any]], writer: Writer) -> str:
    renderer = writer.renderer
    if renderer.mode == "chat":
        template = ChatTemplate(writer.tokenizer, renderer.chat_template, kwargs=renderer.chat_template_kwargs)
        return template.render(messages, generation=True)
    start = str(writer.tokenizer.decode(text_ids(writer.tokenizer, "", bos=True)))
    return start + "\n\n".join(str(message["content"]) for message in messages) + "\n"


def _row(text: str, reply: Reply, writer: Writer) -> _Row | None:
    """Return the tokens of prompt and answer; ``None`` for an empty answer, or one that does not fit."""
    tokenizer = writer.tokenizer
    prompt, whole = text_ids(tokenizer, text), text_ids(tokenizer, text + reply.text)
    answer = whole[len(prompt) :] if whole[: len(prompt)] == prompt else text_ids(tokenizer, reply.text)
    if not answer or not prompt:
        return None
    if reply.ended:
        end = text_ids(tokenizer, writer.renderer.end_of_turn.strip())[:1]
        answer += end or [i for i in (tokenizer.eos_token_id,) if i is not None]
    if writer.max_length is not None and len(prompt) + len(answer) > writer.max_length:
        return None
    return {"input_ids": [*prompt, *answer], "labels": [IGNORED] * len(prompt) + answer}
