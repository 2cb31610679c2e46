"""The draw of texts that the base is run on before the first step, for methods that need some."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from selfaug.common.errors import ConfigError, DataError
from selfaug.methods.requests import Texts

if TYPE_CHECKING:
    from selfaug.before.context import BeforeTraining

__all__ = ["draw_texts", "text_of"]

_IGNORED = -100


def draw_texts(before: BeforeTraining, texts: Texts) -> list[list[int]]:
    """Return the token ids of rows that are drawn by the run's seed.

    Raises:
        ConfigError: If the training rows are a stream.
        DataError: If there are no rows.
    """
    rows = before.rows if texts.path is None else before.rows_of(texts.path)
    if not isinstance(rows, Dataset):
        raise ConfigError(
            f"method={before.method.name!r} draws texts before training, and the data set is a stream or was not "
            "prepared here.",
            "give a data set of known length (--dataset_streaming false, without skip_prepare_dataset).",
        )
    if not len(rows):
        raise DataError(f"{texts.name} has no rows to look at.", "give some texts.")
    chosen = sorted(random.Random(before.config.seed).sample(range(len(rows)), min(texts.count, len(rows))))
    return [text_of(rows[i], prompt=texts.path is None) for i in chosen]


def text_of(row: Mapping[str, Any], *, prompt: bool) -> list[int]:
    """Return a row's tokens, or with ``prompt`` those before its first response token, if there are any."""
    ids = list(row["input_ids"])
    if not prompt:
        return ids
    first = next((t for t, label in enumerate(row["labels"]) if label != _IGNORED), len(ids))
    return ids[:first] or ids
