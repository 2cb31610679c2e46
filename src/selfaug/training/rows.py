"""Prepares the rows of a training data set before TRL packs and collates them.

Records and conversations are tokenised here, TRL's own formats by TRL. All rows are fitted to the length limit here,
since TRL would cut off the answers after long documents.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias, cast

import pyarrow.compute as pc  # type: ignore[import-untyped]
from datasets import Dataset, IterableDataset, concatenate_datasets
from trl.data_utils import get_dataset_column_names

from selfaug.common.errors import ConfigError, DataError
from selfaug.common.progress import counting
from selfaug.common.ranks import once_per_machine
from selfaug.common.terminal import say
from selfaug.data.encode import aligned_tokens, encode
from selfaug.data.fields import RowError
from selfaug.data.fit import fit_ids
from selfaug.data.lengths import LengthReport
from selfaug.data.lost_answers import LOST_HINT, OnLostAnswer, lost_in_prompt, prompt_and_response
from selfaug.data.prompts import Renderer
from selfaug.data.read import LOOKED_AT, Reader, fingerprint_of, table_row
from selfaug.data.record import Item, Where, parse_conversation, parse_record
from selfaug.data.stored import ITEM, Encoding, find_or_make, open_table, write_encoded
from selfaug.data.tables import trl_table

__all__ = [
    "check_rows",
    "formatted",
    "items_table",
    "prepare_rows",
    "require_aligned_tokens",
    "takes_items",
    "with_empty_rows",
]

Rows: TypeAlias = Any  # datasets.Dataset or IterableDataset

_LOST = "selfaug_answer_lost"
_MANY_ROWS = 5000  # number of rows from which on tokenising takes seconds

logger = logging.getLogger(__name__)


def items_table(items: Sequence[Item]) -> Dataset:
    """Return a table of items as JSON texts, since columns would give each row the fields of all rows."""
    return Dataset.from_dict({ITEM: [json.dumps(item.to_row()) for item in items]})


def formatted(dataset: Rows, formatting_func: Callable[[Any], Any], text_field: str) -> Rows:
    """Return the rows as the texts that ``formatting_func`` makes of them.

    TRL itself would prefer messages in the rows to these texts.

    Raises:
        DataError: If a row does not become a text.
    """

    def one(row: Mapping[str, Any]) -> dict[str, str]:
        text = formatting_func(row)
        if not isinstance(text, str):
            raise DataError(
                f"formatting_func returned {type(text).__name__} for a row, and a text is needed",
                "return one string for each row.",
            )
        return {text_field: text}

    columns = get_dataset_column_names(dataset)
    return dataset.map(one, remove_columns=[name for name in columns if name != text_field])


def check_rows(dataset: Rows, name: str, *, formatting_func: Any, text_field: str, aligns: bool) -> None:
    """Check by columns and first rows that a data set can be trained on, before a model is loaded.

    Args:
        dataset: Data set of the trainer; anything but a table or stream of ``datasets`` is left to TRL.
        name: Name of the data set in messages.
        formatting_func: Formatting function of the trainer; ``None`` for none.
        text_field: Name of the column of TRL's plain texts.
        aligns: Whether the method aligns prompts.

    Raises:
        ConfigError: If ``formatting_func`` would have no effect, or leaves no prompt to align.
        DataError: If the rows are in no known format, or the first ones are bad.
    """
    if isinstance(dataset, Mapping):
        for key, part in dataset.items():
            check_rows(part, f"{name} {key}", formatting_func=formatting_func, text_field=text_field, aligns=aligns)
        return
    if not isinstance(dataset, Dataset | IterableDataset):
        return
    columns = set(get_dataset_column_names(dataset))
    if formatting_func is not None:
        if columns & {"input_ids", ITEM}:
            raise ConfigError(
                f"formatting_func is set, and the {name} data set holds tokens, which it would have no effect on.",
                "leave formatting_func out, or give the rows from which the tokens were made.",
            )
        if aligns:
            raise ConfigError(
                "formatting_func makes texts of which every token is trained, so there is no prompt to be aligned.",
                "leave formatting_func out and give records, messages or prompt/completion rows; or set alpha=0.",
            )
        return
    reader = _reader(dataset, name, text_field)
    if reader is None:
        return
    for number, row in enumerate(_first(dataset), start=1):
        for item in reader.items(row, Where(name, number, "row")):
            if isinstance(item, RowError):
                raise item


def _first(dataset: Rows) -> Iterator[Any]:
    rows = (
        dataset.select(range(min(LOOKED_AT, len(dataset)))) if isinstance(dataset, Dataset) else dataset.take(LOOKED_AT)
    )
    return (table_row(row, dataset.features) for row in rows)


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
    change: Callable[[list[Item]], list[Item]] | None = None,
    text_field: str = "text",
    processes: int | None = None,
) -> Rows:
    """Return rows of ``input_ids`` and ``labels`` of at most ``max_length`` tokens.

    Args:
        dataset: Rows of records, of conversations, or in any format of TRL's.
        tokenizer: Tokenizer of the model.
        renderer: Renderer of the prompts; ``None`` for the tokenizer's default.
        max_length: Largest number of tokens of a row; ``None`` for no limit.
        cut_prompt_left: Whether the prompt of a row without documents is cut from the left where it is too long.
        on_lost_answer: Treatment of rows whose answer is only in what does not fit; see
            :func:`selfaug.data.encode.encode`.
        tokenise: Function of TRL that tokenises its own formats.
        name: Name of the data set in messages.
        change: Function that is applied to all records and conversations first; ``None`` for none.
        text_field: Name of the column of TRL's plain texts.
        processes: Number of processes that tokenise the records and conversations of a table on disk.

    Raises:
        DataError: If a row does not fit its columns, or no row is left.
    """
    reader = _reader(dataset, name, text_field)
    if reader is None:
        tokens = "input_ids" in get_dataset_column_names(dataset)
        if isinstance(dataset, Dataset) and len(dataset) >= _MANY_ROWS and not tokens:
            say(f"trl tokenises the {len(dataset):,} rows of the {name} data set ...")
        return _fit(tokenise(_exact(dataset)), max_length, cut_prompt_left, name, tokenizer, on_lost_answer)
    if reader.unread:
        logger.warning("%s: unread columns: %s", name, ", ".join(sorted(reader.unread)))
    renderer = renderer or Renderer.for_tokenizer(tokenizer)
    if isinstance(dataset, IterableDataset):
        return _stream(dataset, reader, tokenizer, renderer, max_length, cut_prompt_left, on_lost_answer)
    encoding = Encoding(tokenizer, renderer, max_length, cut_prompt_left, on_lost_answer, "error")
    if change is None and dataset.cache_files:
        return _kept_on_disk(dataset, reader, encoding, name, processes)
    items = list(_items(dataset, reader, name))
    encoded = encode(
        items if change is None else change(items),
        tokenizer,
        renderer,
        max_length=max_length,
        cut_prompt_left=cut_prompt_left,
        on_lost_answer=on_lost_answer,
    )
    # The command line reports on rows that it encodes itself; these are token ids already and do not come here.
    _log(name, encoded.report.lines(), encoded.report.warnings() if encoded.rows and change is None else ())
    _require_rows(encoded.report, name)
    return Dataset.from_list(encoded.rows)


def _kept_on_disk(dataset: Dataset, reader: Reader, encoding: Encoding, name: str, processes: int | None) -> Dataset:
    """Return the token rows of a table on disk as a table on disk, which is made once on each machine."""

    def make(folder: Path) -> dict[str, Any]:
        with counting(f"tokens of {name}", len(dataset)) as progress:
            report = write_encoded(folder, _items(dataset, reader, name), encoding, processes, progress)
        _require_rows(report, name)
        return {"lines": report.lines(), "warnings": report.warnings()}

    key = {"table": fingerprint_of(dataset), "name": name} | encoding.key()
    folder, facts = once_per_machine(lambda: find_or_make(key, make))
    _log(name, facts["lines"], facts["warnings"])
    return open_table(folder)


def _items(dataset: Dataset, reader: Reader, name: str) -> Iterator[Item]:
    for number, row in enumerate(dataset, start=1):
        for item in reader.items(table_row(row, dataset.features), Where(name, number, "row")):
            if isinstance(item, RowError):
                raise item
            yield cast("Item", item)


def _log(name: str, lines: Iterable[str], warnings: Iterable[tuple[str, str]]) -> None:
    for line in lines:
        logger.info("%s: %s", name, line)
    for message, hint in warnings:
        logger.warning("%s: %s. %s", name, message, hint)


def _require_rows(report: LengthReport, name: str) -> None:
    if not report.kept:
        raise DataError(
            f"no row of the {name} data set fits max_length={report.max_length}: nothing is left to train on.",
            "raise --max_length, or shorten the questions and answers.",
        )


class _Packed(Reader):
    """Reads the rows of :func:`items_table`."""

    def __init__(self) -> None:
        self.unread = set()

    def items(self, row: Any, where: Where) -> Iterator[Item | dict[str, Any] | RowError]:
        fields = json.loads(row[ITEM])
        yield (
            parse_conversation(fields, where)
            if "messages" in fields
            else parse_record(fields, where, needs_documents=False)
        )


def _reader(dataset: Rows, name: str, text_field: str) -> Reader | None:
    """Return a reader of the rows; ``None`` for TRL's own formats, which TRL tokenises.

    Raises:
        DataError: If the rows are in no known format.
    """
    columns = set(get_dataset_column_names(dataset))
    if ITEM in columns:
        return _Packed()
    if "input_ids" in columns or {"prompt", "completion"} <= columns:
        return None
    if text_field in columns and not columns & {"messages", "conversations", "question"}:
        return None
    rows = ((Where(name, number, "row"), row) for number, row in enumerate(_first(dataset), start=1))
    reader = Reader(f"the {name} data set", rows, None, needs_documents=True)
    if reader.format.name == "trl":
        return None
    for row in _first(dataset):
        reader.note_columns(row)
    return reader


def takes_items(dataset: Rows) -> bool:
    """Tell whether a data set is a table (not a stream) of records or conversations."""
    return isinstance(dataset, Dataset) and _reader(dataset, "training", "text") is not None


def _exact(dataset: Rows) -> Rows:
    """Return rows of TRL's own formats without the nulls that the table added to their messages and tools."""
    features = dataset.features or {}
    objects = [
        name for name in ("prompt", "completion", "tools", "chat_template_kwargs") if _has_objects(features.get(name))
    ]
    if not objects or "input_ids" in features:
        return dataset
    if isinstance(dataset, IterableDataset):
        return dataset.map(lambda row: table_row(row, features))
    exact = trl_table([table_row(row, features) for row in dataset.select_columns(objects)])
    others = dataset.remove_columns(objects)
    return concatenate_datasets([others, exact], axis=1) if others.column_names else exact


def _has_objects(feature: Any) -> bool:
    """Tell whether a column holds objects, which all get the same keys in a table."""
    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) else None)
    return isinstance(feature, dict) or (inner is not None and _has_objects(inner))


def _stream(
    dataset: IterableDataset,
    reader: Reader,
    tokenizer: Any,
    renderer: Renderer,
    max_length: int | None,
    cut_prompt_left: bool,
    on_lost_answer: OnLostAnswer,
) -> Rows:
    columns = get_dataset_column_names(dataset)
    features = dataset.features

    def one(batch: Mapping[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        row = table_row({key: values[0] for key, values in batch.items()}, features)
        items = list(reader.items(row, Where("stream", numbers[0] + 1, "row")))
        for item in items:
            if isinstance(item, RowError):
                raise item
        rows = encode(
            cast("list[Item]", items),
            tokenizer,
            renderer,
            max_length=max_length,
            cut_prompt_left=cut_prompt_left,
            on_lost_answer=on_lost_answer,
        ).rows
        return {name: [row[name] for row in rows] for name in ("input_ids", "labels")}

    return dataset.map(one, with_indices=True, batched=True, batch_size=1, remove_columns=sorted(columns))


def _fit(
    dataset: Rows,
    max_length: int | None,
    cut_prompt_left: bool,
    name: str,
    tokenizer: Any,
    on_lost_answer: OnLostAnswer,
) -> Rows:
    if max_length is None or (isinstance(dataset, Dataset) and _longest(dataset) <= max_length):
        return dataset

    def one(row: Mapping[str, Any]) -> dict[str, Any]:
        fitted = fit_ids(row["input_ids"], row["labels"], max_length, cut_prompt_left=cut_prompt_left)
        if fitted is None:
            return {"input_ids": [], "labels": [], _LOST: False}
        if len(fitted[0]) == len(row["input_ids"]):
            return {"input_ids": fitted[0], "labels": fitted[1], _LOST: False}
        prompt, response = prompt_and_response(row["input_ids"], row["labels"])
        answer = tokenizer.decode(response, skip_special_tokens=True)
        lost = lost_in_prompt(tokenizer, prompt, prompt_and_response(*fitted)[0], [answer])
        return {"input_ids": fitted[0], "labels": fitted[1], _LOST: lost}

    fitted = dataset.map(one).filter(lambda row: len(row["input_ids"]) > 0)
    too_long = len(dataset) - len(fitted) if isinstance(dataset, Dataset) else 0
    lost = sum(fitted[_LOST]) if isinstance(dataset, Dataset) and cut_prompt_left else 0
    if on_lost_answer != "keep":
        # Rows of token ids cannot be made to abstain, so they are left out.
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


def _longest(dataset: Dataset) -> int:
    """Return the number of tokens of the longest row, from the rows' offsets alone."""
    lists = dataset.select_columns("input_ids").with_format("arrow").iter(_MANY_ROWS)
    return max((pc.max(pc.list_value_length(batch["input_ids"])).as_py() or 0 for batch in lists), default=0)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def require_aligned_tokens(dataset: Rows, name: str, *, boundary: bool) -> None:
    """Check that a data set has an aligned token; streams are not checked.

    Raises:
        DataError: If no row has an aligned token.
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
    """Pad a tokenised table to a multiple of ``multiple`` rows with rows that do not count.

    Such a row is one token, which neither predicts nor is predicted. Without them accelerate would complete the last
    batches of an evaluation on several ranks with the first rows, which would count twice. Streams and other data sets
    stay as they are.
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
