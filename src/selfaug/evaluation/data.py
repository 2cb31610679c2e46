"""The data sets that a run's task is evaluated on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfaug.common.errors import ConfigError, DataError
from selfaug.common.files import missing_path
from selfaug.common.fingerprint import file_hash, files_of
from selfaug.data.files import has_split
from selfaug.data.folders import HELD_OUT, evaluation_splits
from selfaug.data.leaks import check_leaks
from selfaug.data.read import read_rows
from selfaug.data.record import Conversation, Record
from selfaug.data.split import Example, split_by_document
from selfaug.run.model_source import looks_local

__all__ = ["TaskData", "shared_with_training", "task_data"]


@dataclass(frozen=True)
class TaskData:
    """One data set to evaluate on.

    Args:
        name: Name of the part: ``task``, or where there are several ``task:`` and the file's name.
        items: Records and conversations, at most ``limit`` of them.
        described: Entry of the results: files with hashes, number of rows, held-out fraction.
        bad_rows: Number of rows that were left out because they could not be used.
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
    """Return the data sets that ``--data`` names, or else the held-out or evaluation set of the run.

    Args:
        paths: Files, folders or hub names; may be empty.
        config: Settings of the run.
        manifest: Manifest of the run, whose hashes tell whether its data has changed.
        form: Format of the data.
        mapping: Paths of a record's fields in the rows.
        on_bad_row: Treatment of a row that cannot be used: ``error`` or ``skip``.
        limit: Number of rows of each data set, from the first; ``None`` for all.

    Raises:
        ConfigError: If no data set is named and the run has none.
        DataError: If a data set cannot be read or holds no records.
    """
    if paths:
        sets = [_read(path, form, HELD_OUT, on_bad_row, "data", mapping) for path in paths]
        stems = [Path(path).name.split(".")[0] for path in paths]
        names = ["task"] if len(paths) == 1 else [f"task:{stem}" for stem in stems]
        if len(set(names)) < len(names):
            names = [f"task:{stem}-{i}" for i, stem in enumerate(stems, 1)]
    else:
        sets, names = [_of_run(config, manifest, on_bad_row)], ["task"]
    data_sets = []
    for name, (items, described, bad) in zip(names, sets, strict=True):
        kept = items if limit is None else items[:limit]
        data_sets.append(TaskData(name, kept, {**described, "rows": len(items), "limit": limit}, bad))
    return data_sets


def shared_with_training(sets: Sequence[TaskData], config: Mapping[str, Any], manifest: Mapping[str, Any]) -> list[str]:
    """Return a warning for each data set that shares rows, questions or documents with the training data.

    The training rows are read again from the files in the run's configuration. The counts, or the reason why they
    are missing, are added to the description of the data set.

    Args:
        sets: Data sets to evaluate on, other than the run's own held-out set.
        config: Settings of the run.
        manifest: Manifest of the run, whose hashes tell whether the training files have changed.
    """
    try:
        trained = _training_rows(config, manifest)
    except (ConfigError, DataError) as error:
        for data_set in sets:
            data_set.described["shared_with_training"] = {"not_checked": error.message}
        names = ", ".join(str(data_set.described["name"]) for data_set in sets)
        return [f"whether {names} shares rows with the training data could not be checked: {error.message}"]
    lines = []
    for data_set in sets:
        leaks = check_leaks(trained, data_set.items)
        data_set.described["shared_with_training"] = leaks.counts()
        lines += leaks.warning(str(data_set.described["name"]))
    return lines


def _training_rows(config: Mapping[str, Any], manifest: Mapping[str, Any]) -> list[Example]:
    """Return the rows that a run was trained on.

    Raises:
        DataError: If their files are missing or have changed.
    """
    entries = config.get("datasets") or [
        {"path": config.get("dataset_name"), "split": config.get("dataset_train_split")}
    ]
    rows: list[Example] = []
    files: list[Path] = []
    for entry in entries:
        name = str(entry.get("path") or "")
        if not name:
            raise DataError("its configuration names no training data", "restore config.yaml.")
        if entry.get("data_files") or not looks_local(name):
            raise DataError(f"its training data, {name}, is not a file of this machine", "keep the file.")
        if not Path(name).expanduser().exists():
            raise DataError(f"its training data, {name}, is not there any more", "restore the file.")
        loaded = read_rows(
            Path(name).expanduser(),
            format=str(config.get("format") or "auto"),
            mapping=config.get("map"),
            on_bad_row="skip",
            split=str(entry.get("split") or "train").partition("[")[0],
        )
        rows += loaded.items
        files += [file for file in loaded.files if file.is_file()]
    written = ((manifest.get("data") or {}).get("train") or {}).get("files")
    if written and [file["hash"] for file in written] != [file_hash(file) for file in files]:
        raise DataError(f"its training data, {config.get('dataset_name')}, has changed since", "restore the file.")
    if config.get("held_out"):
        return split_by_document(rows, float(config["held_out"]), int(config.get("seed") or 0)).train
    return rows


def _of_run(
    config: Mapping[str, Any], manifest: Mapping[str, Any], on_bad_row: str
) -> tuple[list[Record | Conversation], dict[str, Any], int]:
    form, name = str(config.get("format") or "auto"), str(config.get("dataset_name") or "")
    mapping = config.get("map")
    on_bad_row = str(config.get("on_bad_row") or on_bad_row)
    evaluated = evaluation_splits(config.get("dataset_test_split"))
    if config.get("eval_dataset"):
        return _read(str(config["eval_dataset"]), form, evaluated, on_bad_row, "eval_dataset", mapping)
    if config.get("held_out") and name:
        split = str(config.get("dataset_train_split") or "train")
        items, described, bad = _read(name, form, (split,), on_bad_row, "dataset_name", mapping)
        _check_unchanged(described, manifest, name)
        fraction, seed = float(config["held_out"]), int(config.get("seed") or 0)
        kept: list[Any] = split_by_document(items, fraction, seed).held_out
        return kept, {**described, "held_out": fraction, "held_out_seed": seed}, bad
    if name and has_split(Path(name).expanduser(), evaluated):  # `train` evaluates on such a split, too
        return _read(name, form, evaluated, on_bad_row, "dataset_name", mapping)
    raise ConfigError(
        "the run held no data out and was not evaluated on any, so there is nothing to measure its task on",
        "pass --data FILE with questions that it was not trained on, or --no_task to measure only general ability.",
    )


def _read(
    path: str,
    form: str,
    splits: Sequence[str],
    on_bad_row: str,
    setting: str,
    mapping: Mapping[str, str] | Sequence[str] | None = None,
) -> tuple[list[Record | Conversation], dict[str, Any], int]:
    if looks_local(path) and not Path(path).expanduser().exists():
        raise missing_path(setting, path, "check the path; a data set of the hub has the form owner/name.")
    local = Path(path).expanduser()
    given = local if local.exists() else path
    loaded = read_rows(given, format=form, on_bad_row=on_bad_row, split=splits, mapping=mapping)
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
        "name": loaded.name,
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
