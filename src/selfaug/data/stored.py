"""Stores tables of training rows, and other prepared data, on disk under a hash of everything that decides them.

Each table is in a folder of its own in the cache of ``datasets``, beside its facts for the user (``facts.json``). The
folder is renamed into place when it is complete, so runs that start at the same time never see half of one.
"""

from __future__ import annotations

import json
import random
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow as pa  # type: ignore[import-untyped]
from datasets.arrow_writer import ArrowWriter

from selfaug.common.errors import ConfigError
from selfaug.common.fingerprint import text_hash, tokenizer_hash, versions
from selfaug.common.processes import chunked, in_order
from selfaug.data.encode import encode
from selfaug.data.lengths import LengthReport
from selfaug.data.record import Item

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selfaug.data.prompts import Renderer

__all__ = ["ITEM", "Encoding", "cache_folder", "find_or_make", "open_table", "write_encoded", "write_table"]

VERSION = 2
"""Version of the tables. It rises with every change of the ids and labels of a row, or of the files."""

ITEM = "selfaug_item"
"""Name of the column that holds records and conversations as JSON texts."""

_TABLE, _FACTS = "rows.arrow", "facts.json"
_CHUNK = 1000  # number of items that go to a process at once, and of rows of a record batch
_IDS = pa.list_(pa.int32())


@dataclass(frozen=True)
class Encoding:
    """Settings that decide the token ids and labels of an item; see :func:`selfaug.data.encode.encode`.

    Args:
        tokenizer: Tokenizer of the model.
        renderer: Renderer of the prompts.
        max_length: Largest number of tokens of a row; ``None`` for no limit.
        cut_prompt_left: Whether the prompt of a row without documents is cut from the left where it is too long.
        on_lost_answer: Treatment of rows whose answer does not fit.
        on_bad_row: Treatment of items without exact token ids.
        as_items: Whether the table holds the items that would have a row, in column ``ITEM``, instead of token ids.
    """

    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer
    max_length: int | None
    cut_prompt_left: bool
    on_lost_answer: Any
    on_bad_row: Any
    as_items: bool = False

    def key(self) -> dict[str, Any]:
        """Return all settings as JSON; the tokenizer is identified by its content."""
        tokenizer = self.tokenizer
        settings = {name: value for name, value in vars(self).items() if name not in ("tokenizer", "renderer")}
        return {
            **settings,
            "renderer": asdict(self.renderer),
            "tokenizer": tokenizer_hash(tokenizer),
            "template": tokenizer.chat_template,
            "class": f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}",
            # The hash of a tokenizer that is written in Python does not cover its code.
            "once": None if tokenizer.is_fast else random.SystemRandom().getrandbits(64),
        }

    def table(self, items: list[Item], first: int) -> tuple[pa.Table, LengthReport]:
        """Return the rows of a chunk of items and their report; ``first`` is the number of the first item."""
        encoded = encode(
            items,
            self.tokenizer,
            self.renderer,
            max_length=self.max_length,
            cut_prompt_left=self.cut_prompt_left,
            on_bad_row=self.on_bad_row,
            on_lost_answer=self.on_lost_answer,
            first=first,
        )
        if self.as_items:
            columns = {ITEM: pa.array([json.dumps(items[place].to_row()) for place in encoded.places], pa.string())}
        else:
            names = ("input_ids", "labels")
            columns = {name: pa.array([row[name] for row in encoded.rows], _IDS) for name in names}
        return pa.table(columns), encoded.report


def cache_folder() -> Path:
    """Return the folder of all tables."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "selfaug"


def find_or_make(deciding: Mapping[str, Any], make: Callable[[Path], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """Return the folder with what ``make`` wrote, now or in an earlier run, and the facts that it returned.

    Args:
        deciding: Everything that decides the result, as JSON.
        make: Function that writes into a folder and returns facts, as JSON.

    Raises:
        ConfigError: If the cache cannot be written.
    """
    packages = {name: versions()[name] for name in ("selfaug", "transformers", "tokenizers")}
    key = str(text_hash(json.dumps([VERSION, packages, deciding], sort_keys=True, default=str)))
    folder = cache_folder() / key.removeprefix("sha256:")[:32]
    if _is_whole(folder):
        return folder, _facts(folder)
    # Machines that share the cache may have processes of one number.
    unfinished = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.unfinished")
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        facts = make(unfinished)
        sizes = {file.name: file.stat().st_size for file in unfinished.iterdir()}
        (unfinished / _FACTS).write_text(json.dumps({"facts": facts, "bytes": sizes}), encoding="utf-8")
        try:
            unfinished.rename(folder)
        except OSError:  # another run was faster, or the folder is there and damaged
            if not _is_whole(folder):
                shutil.rmtree(folder)
                unfinished.rename(folder)
        return folder, _facts(folder)
    except OSError as error:
        raise ConfigError(
            f"prepared data is kept in {folder.parent}, and it cannot be written: {error.strerror or error}",
            "free some space, or name another folder in the environment variable HF_DATASETS_CACHE.",
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    # A machine that lost power may have renamed a folder whose table is cut off.
    try:
        sizes = json.loads((folder / _FACTS).read_text(encoding="utf-8"))["bytes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def _facts(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / _FACTS).read_text(encoding="utf-8"))["facts"])


def open_table(folder: Path) -> datasets.Dataset:
    """Return the table in a folder of :func:`find_or_make`, mapped into memory."""
    return datasets.Dataset.from_file(str(folder / _TABLE))


def write_table(folder: Path, table: datasets.Dataset) -> None:
    """Write a table into a folder of :func:`find_or_make`."""
    with ArrowWriter(path=str(folder / _TABLE), features=table.features) as writer:
        for batch in table.with_format("arrow").iter(_CHUNK):
            writer.write_table(batch)
        writer.finalize()


def write_encoded(
    folder: Path,
    items: Iterable[Item],
    encoding: Encoding,
    processes: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> LengthReport:
    """Encode items into a table in a folder of :func:`find_or_make`, chunk by chunk.

    Args:
        folder: Folder of the table.
        items: Records and conversations, which are iterated over once.
        encoding: Settings of the encoding.
        processes: Number of processes that encode; this process reads the items and sends them in chunks.
        progress: Function called after each chunk with the number of items done.

    Returns:
        The report on all rows.
    """
    report = LengthReport(encoding.max_length, on_lost_answer=encoding.on_lost_answer)
    writer: ArrowWriter | None = None
    try:
        for table, part in _encoded(items, encoding, processes or 1):
            if writer is None:
                features = datasets.Features.from_arrow_schema(table.schema)
                writer = ArrowWriter(path=str(folder / _TABLE), features=features)
            writer.write_table(table)
            report.add(part)
            if progress is not None:
                progress(report.rows)
        if writer is not None:
            writer.finalize()
    finally:
        if writer is not None:
            writer.close()
    return report


def _encoded(items: Iterable[Item], encoding: Encoding, processes: int) -> Iterator[tuple[pa.Table, LengthReport]]:
    chunks = enumerate(chunked(items, _CHUNK))
    killed = ConfigError(
        f"one of the {processes} processes that tokenise the rows was killed, probably for want of memory",
        "lower --dataset_num_proc, or leave it out.",
    )
    return in_order(_table, encoding, chunks, processes, killed)


def _table(encoding: Encoding, chunk: tuple[int, list[Item]]) -> tuple[pa.Table, LengthReport]:
    number, items = chunk
    return encoding.table(items, number * _CHUNK + 1)
