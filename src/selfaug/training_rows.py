"""What becomes of a training data set's rows before TRL packs and collates them?

Records and conversations get ids and labels here; TRL's own formats are tokenised by TRL; all are fitted here, since
TRL would cut the answers behind long documents.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

from datasets import Dataset, IterableDataset, concatenate_datasets
from trl.data_utils import get_dataset_column_names, maybe_convert_to_chatml

from selfaug.data.encode import aligned_tokens, encode
from selfaug.data.fit import fit_ids
from selfaug.data.lost_answers import LOST_HINT, OnLostAnswer, lost_in_prompt, prompt_and_response
from selfaug.data.prompts import Renderer
from selfaug.data.record import Conversation, Record, Where, parse_conversation, parse_record
from selfaug.errors import DataError
from selfaug.terminal import say

__all__ = ["items_table", "prepare_rows", "require_aligned_tokens", "takes_items", "with_empty_rows"]

Rows: TypeAlias = Any  # datasets.Dataset or IterableDataset

_ITEM = "selfaug_item"
_LOST = "selfaug_answer_lost"
_MANY_ROWS = 5000  # the fewest that take seconds

logger = logging.getLogger(__name__)


def items_table(items: Sequence[Record | Conversation]) -> Dataset:
    """A table of records and conversations as they are; columns of their own would give each row all fields of any."""
    return Dataset.from_dict({_ITEM: [json.dumps(item.to_row()) for item in items]})


def prepare_rows(
    dataset: Rows,
    *,
    tokenizer: Any,
    renderer: Renderer | None,
    max_length: int | None,
    cut_prompt_left: bool,
    on_lost_answer: OnLostAnswer = "keep",
    tokenise: Callable[[Rows], Rows],
    name: str,
    change: Callable[[list[Record | Conversation]], list[Record | Conversation]] | None = None,
) -> Rows:
    """Rows with ``input_ids`` and ``labels``, each at most ``max_length`` tokens.

    Args:
        dataset: Rows of records, conversations, or any format of TRL's.
        tokenizer: Of the model.
        renderer: How records become prompts; ``None`` for the tokenizer's default.
        max_length: In tokens; ``None`` for no bound.
        cut_prompt_left: Cut rows without document structure at the left of the prompt instead of leaving them out.
        on_lost_answer: What becomes of rows whose answer stands only in what does not fit; see
            :func:`selfaug.data.encode.encode`.
        tokenise: TRL's preparation, for its own formats.
        name: Of the data set, in messages.
        change: What becomes of records and conversations first.

    Raises:
        DataError: If a row is not what its columns promise, or nothing is left.
    """
    columns = set(get_dataset_column_names(dataset))
    item = _reader(columns)
    if item is None:
        if isinstance(dataset, Dataset) and len(dataset) >= _MANY_ROWS:
            say(f"trl tokenises the {len(dataset):,} rows of the {name} data set ...")
        return _fit(tokenise(dataset), max_length, cut_prompt_left, name, tokenizer, on_lost_answer)
    renderer = renderer or Renderer.for_tokenizer(tokenizer)
    if isinstance(dataset, IterableDataset):
        return _stream(dataset, item, tokenizer, renderer, max_length, cut_prompt_left, on_lost_answer, columns)
    items = [item(row, Where(name, number)) for number, row in enumerate(dataset, start=1)]
    items = items if change is None else change(items)
    encoded = encode(
        items,
        tokenizer,
        renderer,
        max_length=max_length,
        cut_prompt_left=cut_prompt_left,
        on_lost_answer=on_lost_answer,
    )
    for line in encoded.report.lines():
        logger.info("%s: %s", name, line)
    # The command line has said this of rows that it encoded itself; those are token ids by now, and do not come here.
    for message, hint in encoded.report.warnings() if encoded.rows and change is None else ():
        logger.warning("%s: %s. %s", name, message, hint)
    if not encoded.rows:
        raise DataError(
            f"no row of the {name} data set fits max_length={max_length}: nothing is left to train on.",
            "raise --max_length, or shorten the questions and answers.",
        )
    return Dataset.from_list(encoded.rows)


def _reader(columns: set[str]) -> Callable[[Mapping[str, Any], Where], Record | Conversation] | None:
    """What reads a row of these columns; ``None`` for TRL's own formats."""
    if _ITEM in columns:
        return _packed
    if columns & {"input_ids", "prompt"}:
        return None
    if columns & {"messages", "conversations"}:
        return lambda row, where: parse_conversation(maybe_convert_to_chatml(_present(row)), where)
    if "question" in columns and columns & {"answer", "documents"}:
        return lambda row, where: parse_record(_present(row), where)
    return None


def _packed(row: Mapping[str, Any], where: Where) -> Record | Conversation:
    fields = json.loads(row[_ITEM])
    return (
        parse_conversation(fields, where)
        if "messages" in fields
        else parse_record(fields, where, needs_documents=False)
    )


def takes_items(dataset: Rows) -> bool:
    """Whether the rows are records or conversations, of a table of known length."""
    return isinstance(dataset, Dataset) and _reader(set(get_dataset_column_names(dataset))) is not None


def _present(row: Mapping[str, Any]) -> dict[str, Any]:
    # A table has every column in every row: what a row did not have is None there.
    return {key: value for key, value in row.items() if value is not None}


def _stream(
    dataset: IterableDataset,
    item: Callable[[Mapping[str, Any], Where], Record | Conversation],
    tokenizer: Any,
    renderer: Renderer,
    max_length: int | None,
    cut_prompt_left: bool,
    on_lost_answer: OnLostAnswer,
    columns: set[str],
) -> Rows:
    def one(row: Mapping[str, Any], number: int) -> dict[str, Any]:
        read = item(row, Where("stream", number + 1))
        rows = encode(
            [read],
            tokenizer,
            renderer,
            max_length=max_length,
            cut_prompt_left=cut_prompt_left,
            on_lost_answer=on_lost_answer,
        ).rows
        return {"input_ids": rows[0]["input_ids"], "labels": rows[0]["labels"]} if rows else {"input_ids": []}

    encoded = dataset.map(one, with_indices=True, remove_columns=sorted(columns))
    return encoded.filter(lambda row: len(row["input_ids"]) > 0)


def _fit(
    dataset: Rows,
    max_length: int | None,
    cut_prompt_left: bool,
    name: str,
    tokenizer: Any,
    on_lost_answer: OnLostAnswer,
) -> Rows:
    if max_length is None:
        return dataset

    def one(row: Mapping[str, Any]) -> dict[str, Any]:
        fitted = fit_ids(row["input_ids"], row["labels"], max_length, cut_prompt_left=cut_prompt_left)
        if fitted is None:
            return {"input_ids": [], "labels": [], _LOST: False}
        if len(fitted[0]) == len(row["input_ids"]):
            return {"input_ids": fitted[0], "labels": fitted[1], _LOST: False}
        prompt, response = prompt_and_response(row["input_ids"], row["labels"])
        said = tokenizer.decode(response, skip_special_tokens=True)
        lost = lost_in_prompt(tokenizer, prompt, prompt_and_response(*fitted)[0], [said])
        return {"input_ids": fitted[0], "labels": fitted[1], _LOST: lost}

    fitted = dataset.map(one).filter(lambda row: len(row["input_ids"]) > 0)
    too_long = len(dataset) - len(fitted) if isinstance(dataset, Dataset) else 0
    lost = sum(fitted[_LOST]) if isinstance(dataset, Dataset) and cut_prompt_left else 0
    if on_lost_answer != "keep":
        # There is no place for an abstention in rows of token ids.
        fitted = fitted.filter(lambda row: not row[_LOST])
    fitted = fitted.remove_columns(_LOST)
    if isinstance(dataset, Dataset):
        if too_long:
            logger.warning(
                "%s: %d of %d rows (%.0f %%) exceed max_length=%d and are left out. Raise --max_length%s.",
                name, too_long, len(dataset), 100 * too_long / len(dataset), max_length,
                "" if cut_prompt_left else ", or pass --cut_prompt_left true to cut prompts at their left",
            )  # fmt: skip
        if lost:
            logger.warning(
                "%s: %d of %d rows have their answer only in what was cut off their prompt%s. %s",
                name, lost, len(dataset), "" if on_lost_answer == "keep" else ", and are left out", _capital(LOST_HINT),
            )  # fmt: skip
        if not len(fitted):
            raise DataError(
                f"none of the {len(dataset)} rows of the {name} data set fits max_length={max_length}.",
                "raise --max_length, or set --cut_prompt_left true to cut prompts (never answers) at their left.",
            )
    return fitted


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def require_aligned_tokens(dataset: Rows, name: str, *, boundary: bool) -> None:
    """Refuse a data set in which alignment would have nothing to act on.

    Raises:
        DataError: If no row has an aligned token (streams are not looked through).
    """
    if isinstance(dataset, IterableDataset):
        return
    for row in dataset:
        labels = row["labels"]
        if aligned_tokens(labels):
            return
        if boundary and any(a == -100 and b != -100 for a, b in pairwise(labels)):
            return
    raise DataError(
        f"no row of the {name} data set has an aligned token: alignment acts on the prompt, and here every token is "
        "trained on (or prompts are a single token).",
        "give prompts apart from answers (records, messages, or prompt/completion rows without "
        "completion_only_loss=False), or set alpha to 0.",
    )


def with_empty_rows(dataset: Any, multiple: int) -> Any:
    """A tokenised table, filled up to a multiple of ``multiple`` rows with rows that count for nothing.

    Such a row is one token, which nothing predicts and which predicts nothing. Without them accelerate fills the last
    batches of an evaluation on several ranks with rows from its beginning, which would count twice. Streams and other
    data sets stay as they are.
    """
    missing = -len(dataset) % multiple if isinstance(dataset, Dataset) and len(dataset) else 0
    if not missing or "input_ids" not in dataset.column_names:
        return dataset
    first = dataset[0]
    length = len(first["input_ids"])
    row = {k: v[:1] if isinstance(v, list) and len(v) == length else v for k, v in first.items()}
    row |= {name: value for name, value in (("labels", [-100]), ("seq_lengths", [1])) if name in row}
    columns = {name: [value] * missing for name, value in row.items()}
    return concatenate_datasets([dataset, Dataset.from_dict(columns, features=dataset.features)])
