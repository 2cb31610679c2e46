"""The training and evaluation examples of `selfaug train`, from whatever its data flags name."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.common.errors import ConfigError, DataError
from selfaug.common.files import missing_path
from selfaug.common.fingerprint import files_of
from selfaug.common.progress import counting
from selfaug.common.terminal import is_main, say, warn
from selfaug.data.fields import RECEIVED, RowError
from selfaug.data.files import has_split
from selfaug.data.folders import evaluation_splits
from selfaug.data.read import Loaded, hub_split, read_rows, read_table
from selfaug.data.reasons import WARN_ABOVE_SHARE, by_reason, reason_lines
from selfaug.data.record import Conversation
from selfaug.data.split import Example, split_by_document, titles_of
from selfaug.run.model_source import looks_local

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

_BUILDERS = ("json", "csv", "parquet")  # Names under which `load_dataset` reads files.
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
    train = _read(settings, name, (settings.script.dataset_train_split,), "dataset_name")
    if settings.run.held_out is not None:
        return _hold_out(train, settings.run.held_out, settings.training.seed)
    evaluated = evaluation_splits(settings.script.dataset_test_split)
    if settings.run.eval_dataset is not None:
        return _checked(train, _read(settings, settings.run.eval_dataset, evaluated, "eval_dataset"))
    if not wants_eval:
        return Sources(train)
    if looks_local(name) and not has_split(Path(name).expanduser(), evaluated):
        raise ConfigError(
            f"eval_strategy asks for evaluation, and {name} has no {evaluated[0]} split beside its training data",
            "pass --eval_dataset FILE or --held_out 0.1, or leave --eval_strategy out.",
        )
    return _checked(train, _read(settings, name, evaluated, "dataset_name"))


def _read(settings: Settings, name: str, splits: Sequence[str], setting: str) -> Source:
    if looks_local(name):
        path = Path(name).expanduser()
        if not path.exists():
            raise missing_path(setting, name, "check the path; a data set of the hub has the form owner/name.")
        if settings.script.dataset_streaming:
            raise ConfigError(
                f"dataset_streaming is for data sets of the hub, and {name} is on this machine", "leave it out."
            )
        return _say_problems(_rows(settings, path, splits))
    if settings.run.format == "auto" and not settings.run.map:
        table = _hub_table(settings, name, splits)
        if any(columns <= set(table.column_names or ()) for columns in _TRL_COLUMNS):
            return Source(name, table=table)
        if settings.script.dataset_streaming or settings.script.dataset_config:
            raise DataError(
                f"{name} is in none of trl's own formats, and cannot be converted while it is streamed or one of "
                f"several configurations (its columns: {', '.join(table.column_names or ())})",
                "convert it with `selfaug prepare` first, and pass the file.",
            )
    return _say_problems(_rows(settings, name, splits))


def _rows(settings: Settings, path: str | Path, splits: Sequence[str], columns: list[str] | None = None) -> Source:
    run = settings.run
    with counting("rows read", None) as progress:
        loaded = read_rows(
            path,
            format=run.format,
            mapping=run.map,
            on_bad_row=run.on_bad_row,
            split=splits,
            columns=columns,
            progress=progress,
        )
    return Source(loaded.name, loaded)


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
        expected = f"expected {bad.expected}{RECEIVED}{bad.received}"
        return f"field {bad.field}: {expected}" if bad.field else expected

    return [(reason(bad), bad.message) for bad in problems]


def warn_of_bad_rows(name: str, problems: Sequence[RowError], good: int) -> None:
    """Warn where so many rows are bad that the data is probably not what it is taken for."""
    total = good + len(problems)
    if len(problems) > WARN_ABOVE_SHARE * total:
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


def _checked(train: Source, evaluation: Source) -> Sources:
    """Both, after it was said what they share."""
    from selfaug.data.leaks import check_leaks

    if any(source.table is not None and not hasattr(source.table, "__len__") for source in (train, evaluation)):
        say(f"whether {evaluation.name} shares rows with the training data was not checked: one of them is streamed")
    elif is_main():
        leaks = check_leaks(_examples(train), list(_examples(evaluation)))
        for line in leaks.warning(evaluation.name):
            say(line)
    return Sources(train, evaluation)


def _examples(source: Source) -> Collection[Example]:
    if source.loaded is not None:
        return source.loaded.items
    rows: list[Example] = []
    for row in source.table or ():
        messages = row.get("messages")
        rows.append(Conversation(tuple(messages)) if isinstance(messages, list) else dict(row))
    return rows


def _hub_table(settings: Settings, name: str, splits: Sequence[str]) -> Dataset | IterableDataset:
    from datasets import load_dataset

    config = settings.script.dataset_config
    split = hub_split(name, splits, config)
    try:
        return load_dataset(name, name=config, split=split, streaming=settings.script.dataset_streaming)
    except Exception as error:  # The hub's client raises what its HTTP library, its cache and its builders raise.
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"the data set {name!r} is no file here, and could not be loaded from the hub ({first})",
            "check the name, its configuration and split, and the network; a local file is given by its path.",
        ) from error


def _mixture(settings: Settings, wants_eval: bool) -> Sources:
    if settings.run.held_out is not None:
        raise ConfigError("held_out does not work with a mixture", "use test_split_size, the mixture's own setting.")
    mixture = settings.mixture
    if mixture.streaming:
        train, test = _streamed(settings), None
    else:
        parts = [_entry(settings, entry) for entry in mixture.datasets]
        _check_alike(parts)
        fractions = [entry.fraction for entry in mixture.datasets]
        train, test = _joined(parts, fractions, mixture.test_split_size, settings.training.seed)
    evaluation = None
    if settings.run.eval_dataset is not None:
        splits = evaluation_splits(settings.script.dataset_test_split)
        evaluation = _read(settings, settings.run.eval_dataset, splits, "eval_dataset")
    elif wants_eval and test is not None:
        evaluation = test
    elif wants_eval:
        raise ConfigError(
            "eval_strategy asks for evaluation, and the mixture has no test split",
            "set test_split_size in the mixture, or pass --eval_dataset FILE.",
        )
    return Sources(train) if evaluation is None else _checked(train, evaluation)


def _streamed(settings: Settings) -> Source:
    from trl import get_dataset

    local = [entry.path for entry in settings.mixture.datasets if looks_local(entry.path) or entry.path in _BUILDERS]
    if local:
        raise ConfigError(
            f"streaming is for mixtures of the hub's data sets, and {local[0]} is on this machine", "leave it out."
        )
    try:
        return Source("datasets", table=get_dataset(settings.mixture)["train"])
    except Exception as error:  # As in `_hub_table`.
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"the mixture of data sets could not be loaded: {first}", "check its entries.") from error


def _entry(settings: Settings, entry: Any) -> Loaded:
    """The rows of one entry; never through a table that they would share with the others."""
    split, _, part = entry.split.partition("[")
    if entry.path in _BUILDERS or (looks_local(entry.path) and entry.data_files is None):
        found = []
        for name in _named_files(entry, split):
            path = Path(name).expanduser()
            if not path.exists():
                raise missing_path("datasets: path", name, "check the path; a hub name has the form owner/name.")
            source = _say_problems(_rows(settings, path, (split,), entry.columns))
            assert source.loaded is not None
            found.append(source.loaded)
        _check_alike(found)
        loaded = _chained(found)
    else:
        loaded = read_table(
            _hub_entry(entry), entry.path, format=settings.run.format, mapping=settings.run.map,
            on_bad_row=settings.run.on_bad_row,
        )  # fmt: skip
        part = ""
    if part:
        from datasets import ReadInstruction

        try:
            (kept,) = ReadInstruction.from_spec(entry.split).to_absolute({split: len(loaded.items)})
        except (AssertionError, ValueError) as error:
            raise ConfigError(
                f"datasets: split {entry.split!r} is no part of one split ({error})", "write it like train[:10%]."
            ) from None
        loaded = replace(loaded, items=loaded.items[kept.from_ : kept.to])
    return loaded


def _named_files(entry: Any, split: str) -> list[str]:
    """The files, or the folder, that an entry names."""
    files = entry.data_files
    if files is None:
        return [str(Path(entry.path, entry.data_dir or ""))]
    if isinstance(files, dict):
        if split not in files:
            raise ConfigError(
                f"datasets: data_files names no file for the split {split!r}; it names {', '.join(files)}",
                "name the split that the entry should read: split: train",
            )
        files = files[split]
    return [files] if isinstance(files, str) else [str(file) for file in files]


def _hub_entry(entry: Any) -> Any:
    from datasets import load_dataset

    try:
        table = load_dataset(
            entry.path, name=entry.name, data_dir=entry.data_dir, data_files=entry.data_files, split=entry.split
        )
        return table if entry.columns is None else table.select_columns(entry.columns)
    except Exception as error:  # As in `_hub_table`.
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"the data set {entry.path!r} of the mixture could not be loaded: {first}", "check the entry."
        ) from error


def _check_alike(parts: list[Loaded]) -> None:
    """Refuse rows of TRL's own formats beside rows that are trained in another way.

    Raises:
        DataError: With both files and their columns.
    """
    kinds = [(part, _trained(part)) for part in parts]
    for part, kind in kinds[1:]:
        if kind != kinds[0][1]:
            raise DataError(
                f"{kinds[0][0].name} has {kinds[0][1]} and {part.name} has {kind}, which cannot be trained together",
                "convert one of them, or train on one alone.",
            )


def _trained(part: Loaded) -> str:
    if part.kind != "trl":
        return "records or messages"
    row = part.items[0]
    assert isinstance(row, dict)
    return "the columns " + ", ".join(sorted(row.keys() - {"tools", "chat_template_kwargs"}))


def _chained(parts: list[Loaded]) -> Loaded:
    kinds = {part.kind for part in parts}
    return replace(
        parts[0],
        kind=parts[0].kind if len(kinds) == 1 else "record",
        items=[item for part in parts for item in part.items],
        format="+".join(dict.fromkeys(part.format for part in parts)),
        files=tuple(file for part in parts for file in part.files),
        problems=[problem for part in parts for problem in part.problems],
    )


def _joined(
    parts: list[Loaded], fractions: list[float | None], test_size: float | None, seed: int
) -> tuple[Source, Source | None]:
    """The mixture, and what ``test_split_size`` takes from it; shares are counted as TRL counts them."""
    given = [fraction for fraction in fractions if fraction is not None]
    if given and (len(given) < len(fractions) or min(given) < 0 or sum(given) <= 0):
        raise ConfigError(
            f"datasets: fraction is {fractions} over the entries, and shares are parts of one mixture",
            "give each entry a fraction above 0, or none of them.",
        )
    if given:
        shares = [fraction / sum(given) for fraction in given]
        total = min(len(part.items) / share for part, share in zip(parts, shares, strict=True) if share > 0)
        parts = [
            replace(part, items=part.items[: round(share * total)]) for part, share in zip(parts, shares, strict=True)
        ]
    whole = _chained(parts)
    if test_size is None:
        return Source("datasets", whole), None
    count = round(test_size * len(whole.items)) if test_size < 1 else int(test_size)
    if not 0 < count < len(whole.items):
        raise ConfigError(
            f"test_split_size={test_size:g} of {len(whole.items)} rows leaves nothing to train on or to evaluate on",
            "give a part between 0 and 1, or a number of rows.",
        )
    held = set(random.Random(seed).sample(range(len(whole.items)), count))
    train = [item for i, item in enumerate(whole.items) if i not in held]
    test = [item for i, item in enumerate(whole.items) if i in held]
    return Source("datasets", replace(whole, items=train)), Source("datasets", replace(whole, items=test))


def _hold_out(train: Source, fraction: float, seed: int) -> Sources:
    if train.loaded is None:
        raise ConfigError(
            f"held_out is for files of this machine, and {train.name} is a table of the hub",
            "use its own test split: --eval_strategy epoch, and --dataset_test_split where it has another name.",
        )
    split = split_by_document(train.loaded.items, fraction, seed)
    say(f"held out: {len(split.held_out)} of {len(train.loaded.items)} examples, no document on both sides")
    titles = {title for item in split.train for title in titles_of(item)}
    shared = titles & {title for item in split.held_out for title in titles_of(item)}
    if shared:
        say(f"  {len(shared)} titles are on both sides; `selfaug prepare --group_by title` keeps a title on one side")
    parts = [replace(train, loaded=replace(train.loaded, items=items)) for items in (split.train, split.held_out)]
    return Sources(parts[0], parts[1])
