"""What a model of the study answers, and how far it went from the base where the base is to be kept.

The base writes its own greedy answers once. A tuned model is held against them without writing anything: at each
answer token, KL(base ‖ tuned) of the two next-token distributions and the tuned model's NLL of the base's token.

Shapes: N scored tokens of an item, H hidden.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfaug.data.prompts import Renderer
from selfaug.data.record import Record
from selfaug.data.template import ChatTemplate
from selfaug.data.tokens import text_ids
from selfaug.evaluation.task import answer, ask, score
from selfaug.generation.decoding import greedy, stop_ids
from selfaug.model.parts import body_of, head_of
from selfaug.objective import NLL, BaseToTuned, RowTerm
from selfaug.objective.values import row_values

__all__ = ["Item", "base_answers", "chat_ids", "hidden_states", "kept_values", "merged", "task_values"]

TASK_TOKENS = 24
"""Longest answer to a task question; 99 % of SQuAD's have fewer."""
BATCH = 16


@dataclass(frozen=True)
class Item:
    """A text of which the tokens behind ``context`` are scored; an empty context leaves the first one out."""

    group: str
    context: list[int]
    scored: list[int]


def chat_ids(tokenizer: Any, prompt: str) -> list[int]:
    """A user's turn as the model's own chat template shows it, up to where the assistant answers."""
    return text_ids(tokenizer, ChatTemplate(tokenizer).render([{"role": "user", "content": prompt}], generation=True))


def base_answers(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], longest: int) -> list[list[int]]:
    """The base's greedy answers with the token that ends them, cut at ``longest`` tokens."""
    stops = stop_ids(model, tokenizer, Renderer.for_tokenizer(tokenizer))
    with torch.no_grad():
        return greedy(model, prompts, stops=stops, pad=stops[0], max_new_tokens=longest, batch_size=BATCH)


@torch.no_grad()
def hidden_states(model: Any, items: Sequence[Item]) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each item the final hidden states that predict its scored tokens, N x H, and those tokens, N."""
    for item in items:  # One at a time: nothing is padded, and a CPU is as busy with one text as with several.
        start = max(len(item.context), 1)
        ids = torch.tensor([[*item.context, *item.scored]])
        yield body_of(model)(input_ids=ids, use_cache=False).last_hidden_state[0, start - 1 : -1], ids[0, start:]


def kept_values(
    model: Any, items: Sequence[Item], base: Sequence[Tensor] | None, progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """How many items each group has (they stand together), and each one's tokens and sums over them in nats.

    ``nll`` is the model's of the scored tokens, ``kl`` the divergence of the base from it, where the base's hidden
    states are given.
    """
    terms: list[RowTerm] = [NLL("nll"), *([] if base is None else [BaseToTuned("kl")])]
    found: dict[str, Any] = {"groups": dict(Counter(item.group for item in items)), "tokens": []}
    for place, (hidden_NH, label_N) in enumerate(hidden_states(model, items)):
        reference_NH = None if base is None else base[place]
        values = row_values(hidden_NH, head_of(model), terms, reference_NH=reference_NH, label_N=label_N)
        found["tokens"].append(len(label_N))
        for name, value_N in values.items():
            found.setdefault(name, []).append(round(float(value_N.double().sum()), 3))
        if progress is not None:
            progress(place + 1)
    return found


def task_values(model: Any, tokenizer: Any, records: Sequence[Record]) -> dict[str, list[Any]]:
    """Of each record: exact match, F1, whether it was refused, and nats and tokens of the accepted answer."""
    renderer = Renderer.for_tokenizer(tokenizer)
    asked = ask(records, tokenizer, renderer, max_length=None, context=None, max_new_tokens=TASK_TOKENS).asked
    with torch.no_grad():
        said = answer(model, tokenizer, renderer, asked, max_new_tokens=TASK_TOKENS, batch_size=BATCH)
    values = score(asked, said, renderer.abstention)
    return {
        "answerable": [int(record.answerable) for record in records],
        "exact_match": [int(value["exact_match"]) for value in values],
        "f1": [round(value["f1"], 4) for value in values],
        "nll": [round(one.nll[0], 4) for one in said],
        "tokens": [one.nll[1] for one in said],
        "words": [len(one.text.split()) for one in said],
    }


def merged(base: str, adapter: Path | None, scale: float = 1.0) -> Any:
    """The model with ``scale`` times its adapter's update added to the weights, which computes what it would apart."""
    from peft import PeftModel
    from peft.helpers import rescale_adapter_scale
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is None:
        return model.eval()
    peft = PeftModel.from_pretrained(model, str(adapter))
    with rescale_adapter_scale(peft, scale):
        return peft.merge_and_unload().eval()
