"""Which records is a run's task measured on?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfaug.cli.inputs import looks_local, missing_path
from selfaug.data.folders import HELD_OUT, split_file
from selfaug.data.read import read_rows
from selfaug.data.record import Conversation, Record
from selfaug.data.split import split_by_document
from selfaug.errors import ConfigError, DataError
from selfaug.provenance import files_of

__all__ = ["TaskData", "task_data"]


@dataclass(frozen=True)
class TaskData:
    """One data set to measure on.

    Args:
        name: ``task``, or with several ``task:`` and the file's name.
        items: What was read, at most ``limit`` of it.
        described: For the results: files with hashes, rows, what was held out.
        bad_rows: Rows that were left out because they could not be used.
    """

    name: str
    items: list[Record | Conversation]
    described: dict[str, Any]
    bad_rows: int = 0


def task_data(
    paths: Sequence[str],
    config: Mapping[str, Any],
    manifest: Mapping[str, Any],
    *,
    form: str = "auto",
    mapping: Mapping[str, str] | Sequence[str] | None = None,
    on_bad_row: str = "error",
    limit: int | None = None,
) -> list[TaskData]:
    """The data sets that ``--data`` names; without it, what the run itself held out or evaluated on.

    Args:
        paths: Files, folders or hub names; may be empty.
        config: Of the run.
        manifest: Of the run; tells whether its data changed since.
        form: The data's format.
        mapping: Where the fields of a record stand in it.
        on_bad_row: ``error`` or ``skip``.
        limit: Only the first rows of each.

    Raises:
        ConfigError: If none is named and the run has none.
        DataError: If one cannot be read or holds no records.
    """
    if paths:
        sets = [_read(path, form, "test", on_bad_row, "data", mapping) for path in paths]
        stems = [Path(path).name.split(".")[0] for path in paths]
        names = ["task"] if len(paths) == 1 else [f"task:{stem}" for stem in stems]
        if len(set(names)) < len(names):
            names = [f"task:{stem}-{i}" for i, stem in enumerate(stems, 1)]
    else:
        sets, names = [_of_run(config, manifest, on_bad_row)], ["task"]
    found = []
    for name, (items, described, bad) in zip(names, sets, strict=True):
        kept = items if limit is None else items[:limit]
        found.append(TaskData(name, kept, {**described, "rows": len(items), "limit": limit}, bad))
    return found


def _of_run(
    config: Mapping[str, Any], manifest: Mapping[str, Any], on_bad_row: str
) -> tuple[list[Record | Conversation], dict[str, Any], int]:
    form, name = str(config.get("format") or "auto"), str(config.get("dataset_name") or "")
    mapping = config.get("map")
    on_bad_row = str(config.get("on_bad_row") or on_bad_row)
    if config.get("eval_dataset"):
        split = str(config.get("dataset_test_split") or "test")
        return _read(str(config["eval_dataset"]), form, split, on_bad_row, "eval_dataset", mapping)
    if config.get("held_out") and name:
        split = str(config.get("dataset_train_split") or "train")
        trained = str(split_file(name, (split,)) or name)
        items, described, bad = _read(trained, form, split, on_bad_row, "dataset_name", mapping)
        _check_unchanged(described, manifest, name)
        fraction, seed = float(config["held_out"]), int(config.get("seed") or 0)
        kept: list[Any] = split_by_document(items, fraction, seed).held_out
        return kept, {**described, "held_out": fraction, "held_out_seed": seed}, bad
    beside = split_file(name, HELD_OUT)  # as `train` looks for it beside its training file
    if beside is not None:
        return _read(str(beside), form, "test", on_bad_row, "dataset_name", mapping)
    raise ConfigError(
        "the run held no data out and was not evaluated on any, so there is nothing to measure its task on",
        "pass --data FILE with questions that it was not trained on, or --no_task to measure only general ability.",
    )


def _read(
    path: str,
    form: str,
    split: str,
    on_bad_row: str,
    setting: str,
    mapping: Mapping[str, str] | Sequence[str] | None = None,
) -> tuple[list[Record | Conversation], dict[str, Any], int]:
    if looks_local(path) and not Path(path).expanduser().exists():
        raise missing_path(setting, path, "check the path; a data set of the hub has the form owner/name.")
    local = Path(path).expanduser()
    given = local if local.exists() else path
    loaded = read_rows(given, format=form, on_bad_row=on_bad_row, split=split, mapping=mapping)
    if loaded.kind == "trl":
        raise DataError(
            f"{path} is in one of TRL's own formats, whose rows do not say which answers are accepted",
            'pass --data with records: {"question": ..., "documents": [...], "answer": ...}.',
        )
    if not any(isinstance(item, Record) for item in loaded.items):
        raise DataError(
            f"{path} holds conversations, and answers are scored against the accepted strings of records",
            'pass --data with records: {"question": ..., "documents": [...], "answer": ...}.',
        )
    described = {
        "name": path,
        "format": loaded.format,
        "files": files_of([file for file in loaded.files if file.is_file()]),
    }
    items: list[Any] = loaded.items
    return items, described, len(loaded.problems)


def _check_unchanged(described: Mapping[str, Any], manifest: Mapping[str, Any], name: str) -> None:
    written = ((manifest.get("data") or {}).get("train") or {}).get("files")
    if written and [file["hash"] for file in written] != [file["hash"] for file in described["files"]]:
        raise DataError(
            f"{name} has changed since the run was trained on it, so what it held out cannot be told any more",
            "restore the file, or pass --data FILE with questions that it was not trained on.",
        )
