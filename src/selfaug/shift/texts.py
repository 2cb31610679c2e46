"""The texts that the shift of a run is measured on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from selfaug.common.errors import ConfigError, DataError
from selfaug.data.encode import conversation_tokens
from selfaug.data.fit import fit_documents, fit_ids, fit_record
from selfaug.data.folders import HELD_OUT, evaluation_splits
from selfaug.data.read import read_rows
from selfaug.data.record import Conversation, Record
from selfaug.data.split import split_by_document
from selfaug.data.tokens import text_ids
from selfaug.evaluation.text import read_texts
from selfaug.shift.measure import Text
from selfaug.shift.regions import conversation_regions, record_regions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selfaug.data.prompts import Renderer

__all__ = ["data_of_run", "general_texts", "run_data", "task_texts"]

Item = TypeVar("Item")


def data_of_run(config: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return the path or name of the data that a run was evaluated on, else trained on, and the splits to try in order.

    Raises:
        ConfigError: If the run was trained on a mixture, which has no single name.
    """
    train = str(config.get("dataset_train_split") or "train")
    evaluated = evaluation_splits(config.get("dataset_test_split"))
    if config.get("eval_dataset"):
        return str(config["eval_dataset"]), evaluated
    if config.get("dataset_name"):
        return str(config["dataset_name"]), (train,) if config.get("held_out") else (*evaluated, train)
    raise ConfigError(
        "the run was trained on a mixture of data sets, so there is no one to measure on",
        "pass --dataset_name FILE.",
    )


def run_data(
    name: str | None, config: dict[str, Any], on_bad_row: str, mapping: Any = None
) -> tuple[list[Record | Conversation], str, Any]:
    """Return the records and conversations of ``name``, or of the run itself; their description; and their files.

    If the run has a held-out set, that set is taken. ``mapping`` holds the paths of a record's fields in the rows of
    ``name``.

    Raises:
        DataError: If the data cannot be read, or is in TRL's own formats.
        ConfigError: If the run names no data.
    """
    chosen, split = (name, HELD_OUT) if name is not None else data_of_run(config)
    form = "auto" if name is not None else str(config.get("format") or "auto")
    mapping = mapping if name is not None else config.get("map")
    path = Path(chosen).expanduser()
    given = path if path.exists() else chosen
    loaded = read_rows(given, format=form, on_bad_row=on_bad_row, split=split, mapping=mapping)
    if loaded.kind == "trl":
        raise DataError(
            f"{chosen} is in one of trl's own formats, whose rows say nothing of documents and questions",
            "pass --dataset_name with a file of records or messages.",
        )
    items: list[Any] = loaded.items
    what = loaded.name
    if name is None and config.get("held_out"):
        items = split_by_document(items, float(config["held_out"]), int(config.get("seed") or 0)).held_out
        what = f"{loaded.name}, held out"
    return items, what, loaded.files


def sampled(items: Sequence[Item], limit: int, seed: int) -> list[Item]:
    """Return ``limit`` random items in their order; all of them where there are no more, or the limit is 0."""
    if not limit or len(items) <= limit:
        return list(items)
    return [items[place] for place in sorted(random.Random(seed).sample(range(len(items)), limit))]


def task_texts(
    items: Sequence[Record | Conversation],
    tokenizer: PreTrainedTokenizerBase,
    renderer: Renderer,
    max_length: int | None,
) -> tuple[list[Text], int]:
    """Return each item as it is trained on, with the region of each token, and the number that exceed ``max_length``.

    Raises:
        DataError: If no item fits.
    """
    renderer.check(tokenizer)
    texts: list[Text] = []
    for item in items:
        if isinstance(item, Record):
            fitted = fit_record(item, renderer, tokenizer, max_length if item.documents else None)
        else:
            fitted = fit_documents(
                item.documents,
                lambda documents, item=item: conversation_tokens(item, tokenizer, renderer, documents),  # type: ignore[misc]
                tokenizer,
                max_length if item.documents else None,
            )
        if fitted is None or fit_ids(fitted.input_ids, fitted.labels, max_length) is None:
            continue
        if isinstance(item, Record):
            regions = record_regions(tokenizer, renderer, item, fitted.kept_documents, fitted.labels)
        else:
            regions = conversation_regions(
                tokenizer, renderer, item, fitted.kept_documents, fitted.input_ids, fitted.labels
            )
        texts.append(Text(fitted.input_ids, regions))
    if not texts:
        raise DataError(
            f"none of the {len(items)} rows fits max_length={max_length}", "raise --max_length, or give shorter rows."
        )
    return texts, len(items) - len(texts)


def general_texts(
    path: Path, tokenizer: PreTrainedTokenizerBase, max_length: int, limit: int, seed: int
) -> tuple[list[Text], int]:
    """Return ``limit`` random pieces of the texts of a file, and the number of all pieces.

    Each piece begins as the tokenizer begins a text (with BOS, where it adds one). A piece of a single token is left
    out.

    Args:
        path: File of texts, as :func:`selfaug.evaluation.text.read_texts` takes it.
        tokenizer: Tokenizer of the model.
        max_length: Longest piece in tokens, at least 3.
        limit: Number of pieces; 0 for all.
        seed: Seed of the draw.

    Raises:
        DataError: If the file is missing, of another kind, or holds no text.
    """
    first = text_ids(tokenizer, "", bos=True)
    pieces = []
    for text in read_texts(path, "--general_text"):
        ids = text_ids(tokenizer, text, bos=True)
        first = [] if ids[: len(first)] != first else first
        body, room = ids[len(first) :], max_length - len(first)
        pieces += [[*first, *body[i : i + room]] for i in range(0, len(body), room)]
    whole = [Text(piece, ["general_text"] * len(piece)) for piece in pieces if len(piece) > 1]
    if not whole:
        raise DataError(f"{path} holds no text of two tokens or more", "give a file with text.")
    return sampled(whole, limit, seed), len(whole)
