"""The share of a skill's items that a model answers correctly, for the log of the base's training.

The official measure is `selfaug evaluate --general lab`, which uses the same items and checks through `lm_eval`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from selfaug.lab.item import Item, chat, passes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["answers", "share_right"]

_BATCH = 256


@torch.no_grad()
def answers(model: Any, tokenizer: PreTrainedTokenizerFast, items: Sequence[Item], longest: int = 64) -> list[str]:
    """Return greedy answers of at most ``longest`` tokens, in the order of the items."""
    prompts = [tokenizer(chat(item.turns), add_special_tokens=False)["input_ids"] for item in items]
    order = sorted(range(len(items)), key=lambda i: len(prompts[i]))
    texts = [""] * len(items)
    for first in range(0, len(order), _BATCH):
        chunk = order[first : first + _BATCH]
        batch = tokenizer.pad({"input_ids": [prompts[i] for i in chunk]}, padding_side="left", return_tensors="pt").to(
            model.device
        )
        width = batch["input_ids"].shape[1]
        ids_BT = model.generate(**batch, max_new_tokens=longest, do_sample=False)
        for i, text in zip(chunk, tokenizer.batch_decode(ids_BT[:, width:], skip_special_tokens=True), strict=True):
            texts[i] = text
    return texts


def share_right(model: Any, tokenizer: PreTrainedTokenizerFast, items: Sequence[Item]) -> float:
    """Return the share of the items whose answer passes its check."""
    texts = answers(model, tokenizer, items)
    return sum(passes(item.check, text) for item, text in zip(items, texts, strict=True)) / len(items)
