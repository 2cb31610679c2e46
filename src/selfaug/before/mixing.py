"""Mixing of a method's own rows into the training rows."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, concatenate_datasets

from selfaug.common.errors import ConfigError, DataError
from selfaug.common.terminal import say
from selfaug.data.encode import encode
from selfaug.data.prompts import Renderer
from selfaug.data.read import read_rows
from selfaug.data.tables import trl_table
from selfaug.methods.requests import Mix

__all__ = ["mixed", "rows_of_file"]


def rows_of_file(
    path: Path, tokenizer: Any, renderer: Renderer | None, max_length: int | None, prepare: Callable[[Dataset], Dataset]
) -> Dataset:
    """Read the rows of a file that fit, tokenised as training rows are.

    Args:
        path: File or folder of rows in any format.
        tokenizer: Tokenizer of the model.
        renderer: Renderer of prompts; ``None`` for the tokenizer's default.
        max_length: Longest row in tokens; ``None`` for any length.
        prepare: The trainer's preparation of rows, for trl's formats.

    Raises:
        DataError: If a row cannot be used, or no row fits.
    """
    loaded = read_rows(path, needs_documents=False)
    if loaded.kind == "trl":
        return prepare(trl_table(loaded.items))  # type: ignore[arg-type]
    renderer = renderer or Renderer.for_tokenizer(tokenizer)
    encoded = encode(loaded.items, tokenizer, renderer, max_length=max_length)  # type: ignore[arg-type]
    if not encoded.rows:
        raise DataError(f"none of the rows of {path} fits max_length={max_length}", "raise --max_length.")
    return Dataset.from_list(encoded.rows)


def mixed(rows: Any, others: Dataset, mix: Mix, seed: int) -> Dataset:
    """Return ``rows`` followed by ``round(ratio · rows)`` of ``others``, drawn without replacement by the seed.

    The order does not matter, since the trainer shuffles.

    Raises:
        ConfigError: If ``rows`` is a stream, whose length is not known.
        DataError: If ``others`` has too few rows.
    """
    if isinstance(rows, IterableDataset):
        raise ConfigError(
            f"rows of {mix.path} are mixed in at a ratio, and the training data set is a stream of unknown length",
            "give a data set of known length, without streaming.",
        )
    count = round(mix.ratio * len(rows))
    if count > len(others):
        raise DataError(
            f"{mix.path} has {len(others)} rows that fit, and a ratio of {mix.ratio:g} to {len(rows)} training rows "
            f"asks for {count}: none is taken twice",
            f"give more rows, or a ratio of at most {len(others) / len(rows):.3g}.",
        )
    say(f"{count} rows of {mix.path} beside {len(rows)} training rows")
    columns = ["input_ids", "labels"]
    drawn = others.select(sorted(random.Random(seed).sample(range(len(others)), count))).select_columns(columns)
    kept = rows.select_columns(columns)
    return concatenate_datasets([kept, drawn.cast(kept.features)])
