"""Which examples does `selfaug train` learn from and evaluate on, from whatever its data flags name?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.cli.inputs import looks_local, missing_path
from selfaug.data.fields import RowError
from selfaug.data.folders import HELD_OUT, split_file
from selfaug.data.leaks import check_leaks
from selfaug.data.read import Loaded, read_rows
from selfaug.data.reasons import MANY, by_reason, reason_lines
from selfaug.data.split import split_by_document
from selfaug.errors import ConfigError, DataError
from selfaug.progress import counting
from selfaug.provenance import files_of
from selfaug.terminal import say, warn

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from selfaug.cli.parsing import Settings

__all__ = [
    "Source",
    "Sources",
    "bad_row_lines",
    "bad_rows_by_reason",
    "read_sources",
    "say_bad_rows",
    "warn_of_bad_rows",
]

_TRL_COLUMNS = ({"prompt", "completion"}, {"messages"}, {"text"}, {"input_ids"})


@dataclass(frozen=True)
class Source:
    """One split, read and not yet tokenised.

    Args:
        name: What the user called it.
        loaded: Records, conversations or rows of local files; ``None`` where ``table`` is given.
        table: A table of the hub in one of trl's own formats, left to trl.
    """

    name: str
    loaded: Loaded | None = None
    table: Dataset | IterableDataset | None = None

    def described(self) -> dict[str, Any]:
        """The split's part of the manifest."""
        if self.loaded is not None:
            files = [path for path in self.loaded.files if path.is_file()]
            return {
                "name": self.name,
                "format": self.loaded.format,
                "rows": len(self.loaded.items),
                "bad_rows_left_out": len(self.loaded.problems),
                "bad_rows_by_reason": bad_rows_by_reason(self.loaded.problems),
                "files": files_of(files),
            }
        rows = len(self.table) if hasattr(self.table, "__len__") else None  # type: ignore[arg-type]
        return {
            "name": self.name,
            "format": "trl",
            "rows": rows,
            "fingerprint": getattr(self.table, "_fingerprint", None),
        }


@dataclass(frozen=True)
class Sources:
    """What is trained and what is evaluated on."""

    train: Source
    evaluation: Source | None = None

    def described(self) -> dict[str, Any]:
        """The manifest's entry ``data``."""
        splits = {"train": self.train, "eval": self.evaluation}
        return {name: source.described() for name, source in splits.items() if source is not None}


def read_sources(settings: Settings) -> Sources:
    """Read what ``dataset_name``, ``datasets``, ``eval_dataset`` and ``held_out`` name.

    Raises:
        ConfigError: If flags are missing or contradict each other.
        DataError: If a file or row cannot be used.
    """
    wants_eval = str(getattr(settings.training.eval_strategy, "value", settings.training.eval_strategy)) != "no"
    if settings.mixture.datasets:
        return _mixture(settings, wants_eval)
    name = settings.script.dataset_name
    if not name:
        raise ConfigError("no data is given", "pass --dataset_name, a file, a folder or a data set of the hub.")
    train_split, test_split = settings.script.dataset_train_split, settings.script.dataset_test_split
    train = _read(settings, str(split_file(name, (train_split,)) or name), train_split, "dataset_name")
    if settings.run.held_out is not None:
        return _hold_out(train, settings.run.held_out, settings.training.seed)
    if settings.run.eval_dataset is not None:
        evaluation = _read(settings, settings.run.eval_dataset, test_split, "eval_dataset")
        _say_leaks(train, evaluation)
        return Sources(train, evaluation)
    if not wants_eval:
        return Sources(train)
    beside = split_file(name, (test_split, *HELD_OUT))
    if looks_local(name) and beside is None:
        raise ConfigError(
            f"eval_strategy asks for evaluation, and {name} has no {test_split} split beside its training data",
            "pass --eval_dataset FILE or --held_out 0.1, or leave --eval_strategy out.",
        )
    return Sources(train, _read(settings, str(beside or name), test_split, "dataset_name"))


def _read(settings: Settings, name: str, split: str, setting: str) -> Source:
    if looks_local(name):
        path = Path(name).expanduser()
        if not path.exists():
            raise missing_path(setting, name, "check the path; a data set of the hub has the form owner/name.")
        if settings.script.dataset_streaming:
            raise ConfigError(
                f"dataset_streaming is for data sets of the hub, and {name} is on this machine", "leave it out."
            )
        return _say_problems(Source(name, _rows(settings, path, split)))
    if settings.run.format == "auto":
        table = _hub_table(settings, name, split)
        if any(columns <= set(table.column_names or ()) for columns in _TRL_COLUMNS):
            return Source(name, table=table)
        if settings.script.dataset_streaming or settings.script.dataset_config:
            raise DataError(
                f"{name} is in none of trl's own formats, and cannot be converted while it is streamed or one of "
                f"several configurations (its columns: {', '.join(table.column_names or ())})",
                "convert it with `selfaug prepare` first, and pass the file.",
            )
    return _say_problems(Source(name, _rows(settings, name, split)))


def _rows(settings: Settings, path: str | Path, split: str) -> Loaded:
    with counting("rows read", None) as progress:
        return read_rows(
            path, format=settings.run.format, on_bad_row=settings.run.on_bad_row, split=split, progress=progress
        )


def _say_problems(source: Source) -> Source:
    problems = source.loaded.problems if source.loaded is not None else []
    if problems:
        assert source.loaded is not None
        say_bad_rows(source.name, problems, len(source.loaded.items))
    return source


def bad_row_lines(problems: Sequence[RowError], good: int) -> list[str]:
    """Bad rows that were left out, by reason."""
    return reason_lines(_reasons(problems), good + len(problems), "bad rows left out")


def bad_rows_by_reason(problems: Sequence[RowError]) -> dict[str, int]:
    """Counts of bad rows that were left out."""
    return {reason.text: reason.count for reason in by_reason(_reasons(problems))}


def _reasons(problems: Sequence[RowError]) -> list[tuple[str, str]]:
    def reason(bad: RowError) -> str:
        expected = f"expected {bad.expected}, received {bad.received}"
        return f"field {bad.field}: {expected}" if bad.field else expected

    return [(str(bad.where), reason(bad)) for bad in problems]


def warn_of_bad_rows(name: str, problems: Sequence[RowError], good: int) -> None:
    """Warn where so many rows are bad that the data is probably not what it is taken for."""
    total = good + len(problems)
    if len(problems) > MANY * total:
        warn(
            f"only {good} of {total} rows of {name} can be used: {len(problems)} "
            f"({100 * len(problems) / total:.0f} %) are bad and left out.",
            "look at the reasons; --format names the format where the rows are in another than was taken for theirs.",
        )


def say_bad_rows(name: str, problems: Sequence[RowError], good: int) -> None:
    """Say which bad rows were left out, by reason, and warn where they are many."""
    first, *others = bad_row_lines(problems, good)
    say(f"{name}: {first}")
    for line in others:
        say(line)
    warn_of_bad_rows(name, problems, good)


def _say_leaks(train: Source, evaluation: Source) -> None:
    if train.loaded is None or evaluation.loaded is None:
        return
    leaks = check_leaks(train.loaded.items, evaluation.loaded.items)
    if leaks:
        say(f"{evaluation.name} is not independent of the training data:")
        for line in leaks.lines():
            say(f"  {line}")


def _hub_table(settings: Settings, name: str, split: str) -> Dataset | IterableDataset:
    from datasets import load_dataset

    try:
        return load_dataset(
            name, name=settings.script.dataset_config, split=split, streaming=settings.script.dataset_streaming
        )
    except Exception as error:  # The hub's client raises what its HTTP library, its cache and its builders raise.
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"the data set {name!r} is no file here, and could not be loaded from the hub ({first})",
            "check the name, its configuration and split, and the network; a local file is given by its path.",
        ) from error


def _mixture(settings: Settings, wants_eval: bool) -> Sources:
    from trl import get_dataset

    if settings.run.held_out is not None:
        raise ConfigError("held_out does not work with a mixture", "use test_split_size, the mixture's own setting.")
    entries = []
    for entry in settings.mixture.datasets:
        local = looks_local(entry.path) and entry.data_files is None
        if local and not Path(entry.path).expanduser().exists():
            raise missing_path("datasets: path", entry.path, "check the path; a hub name has the form owner/name.")
        if local and Path(entry.path).expanduser().is_file():
            # `load_dataset` reads a file only through the builder of its kind.
            kind = "parquet" if entry.path.endswith(".parquet") else "json"
            entry = replace(entry, path=kind, data_files=str(Path(entry.path).expanduser()))
        entries.append(entry)
    try:
        tables = get_dataset(replace(settings.mixture, datasets=entries))
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"the mixture of data sets could not be loaded: {first}", "check its entries.") from error
    train = tables["train"]
    if not any(columns <= set(train.column_names or ()) for columns in _TRL_COLUMNS):
        raise DataError(
            f"a mixture holds trl's own formats only, and has the columns {', '.join(train.column_names or ())}",
            "convert its records with `selfaug prepare` first.",
        )
    evaluation = None
    if settings.run.eval_dataset is not None:
        evaluation = _read(settings, settings.run.eval_dataset, settings.script.dataset_test_split, "eval_dataset")
    elif wants_eval and "test" in tables:
        evaluation = Source("datasets", table=tables["test"])
    elif wants_eval:
        raise ConfigError(
            "eval_strategy asks for evaluation, and the mixture has no test split",
            "set test_split_size in the mixture, or pass --eval_dataset FILE.",
        )
    return Sources(Source("datasets", table=train), evaluation)


def _hold_out(train: Source, fraction: float, seed: int) -> Sources:
    if train.loaded is None:
        raise ConfigError(
            f"held_out is for files of this machine, and {train.name} is a table of the hub",
            "use its own test split: --eval_strategy epoch, and --dataset_test_split where it has another name.",
        )
    split = split_by_document(train.loaded.items, fraction, seed)
    say(f"held out: {len(split.held_out)} of {len(train.loaded.items)} examples, no document on both sides")
    parts = [replace(train, loaded=replace(train.loaded, items=items)) for items in (split.train, split.held_out)]
    return Sources(parts[0], parts[1])
