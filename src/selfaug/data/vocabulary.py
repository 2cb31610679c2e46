"""Checks that every token id of the data has a row in the model's embedding.

A tokenizer may have more tokens than the model, such as unused added tokens, so the ids that occur are checked instead
of the tokenizer's size. PyTorch would only report ``IndexError: index out of range in self``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from selfaug.common.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

__all__ = ["IGNORED", "check_ids", "check_padding", "check_table", "embedding_rows"]

IGNORED = -100
"""Label of a token that is not trained."""


def embedding_rows(config: PretrainedConfig) -> int | None:
    """Return the number of rows of the input embedding by the model's configuration; ``None`` if it gives none."""
    rows = getattr(config.get_text_config(), "vocab_size", None)
    return int(rows) if isinstance(rows, int) else None


def check_ids(
    rows: Iterable[Sequence[int]], embeddings: int | None, tokenizer: PreTrainedTokenizerBase, where: str
) -> None:
    """Check that each id in rows of token ids has an embedding.

    Args:
        rows: Rows of token ids.
        embeddings: Number of embeddings, as from :func:`embedding_rows`; ``None`` for no check.
        tokenizer: Tokenizer, for the name of the token in the message.
        where: Description of the rows for the message.

    Raises:
        DataError: If an id has no embedding.
    """
    if embeddings is None:
        return
    for number, row in enumerate(rows, start=1):
        if row and not 0 <= min(row) <= max(row) < embeddings:
            bad = next(one for one in row if not 0 <= one < embeddings)
            raise _unknown_id(bad, embeddings, tokenizer, f"row {number} of {where}")


def check_table(table: Any, embeddings: int | None, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Check that each id in the columns ``input_ids`` and ``labels`` of a table has an embedding.

    Anything but a ``datasets.Dataset``, such as a stream, is not checked.

    Raises:
        DataError: If an id has no embedding.
    """
    from datasets import Dataset

    names = [name for name in ("input_ids", "labels") if isinstance(table, Dataset) and name in table.column_names]
    if embeddings is None or "input_ids" not in names:
        return
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    before = 0
    for batch in table.select_columns(names).with_format("arrow").iter(1000):
        for name in names:
            flat = pc.list_flatten(batch[name])
            if name == "labels":
                flat = flat.filter(pc.not_equal(flat, IGNORED))
            ends = pc.min_max(flat).as_py()
            if ends["min"] is None or 0 <= ends["min"] <= ends["max"] < embeddings:
                continue
            for number, row in enumerate(batch[name].to_pylist(), start=before + 1):
                for one in row:
                    if not (0 <= one < embeddings or (name == "labels" and one == IGNORED)):
                        raise _unknown_id(one, embeddings, tokenizer, f"row {number} of {where}", name)
        before += len(batch)


def check_padding(embeddings: int | None, tokenizer: PreTrainedTokenizerBase, pad_token: str | None = None) -> None:
    """Check that the padding token has an embedding.

    Args:
        embeddings: Number of embeddings, as from :func:`embedding_rows`; ``None`` for no check.
        tokenizer: Tokenizer, whose padding token, or else end of sequence, is used.
        pad_token: Padding token in place of the tokenizer's; ``None`` for none.

    Raises:
        ConfigError: If the token is not in the vocabulary or has no embedding.
    """
    token = pad_token or tokenizer.pad_token or tokenizer.eos_token
    if token is None:
        return
    number = tokenizer.get_vocab().get(str(token))
    if number is None:
        raise ConfigError(
            f"pad_token {str(token)!r} is not in the model's vocabulary", "name a token that the tokenizer has."
        )
    if embeddings is not None and number >= embeddings:
        known = [str(one) for one in (tokenizer.eos_token, tokenizer.unk_token, tokenizer.bos_token) if one is not None]
        fit = [one for one in known if tokenizer.get_vocab().get(one, embeddings) < embeddings]
        raise ConfigError(
            f"the padding token {str(token)!r} has the id {number}, and the model has {embeddings} embeddings: batches "
            "could not be padded",
            f"""name another token, such as --pad_token "{(fit or ["<unk>"])[0]}", or resize the model first.""",
        )


def _unknown_id(
    number: int, embeddings: int, tokenizer: PreTrainedTokenizerBase, where: str, column: str = "input_ids"
) -> DataError:
    what = "a label" if column == "labels" else "a token"
    if number < 0:
        return DataError(
            f"{where} has {what} {number}, which is no token id",
            f"token ids are 0 or more{f'; a label that is not trained is {IGNORED}' if column == 'labels' else ''}.",
        )
    token = tokenizer.convert_ids_to_tokens(number) if number < len(tokenizer) else None
    named = f"{token!r}, id {number}" if token is not None else f"id {number}, which the tokenizer does not know either"
    return DataError(
        f"{where} has {what} ({named}) that the model has no embedding of: it has {embeddings}",
        "use the tokenizer and chat template that belong to the model, or resize the model to its tokenizer first "
        f"(`model.resize_token_embeddings({max(len(tokenizer), number + 1)})`).",
    )
