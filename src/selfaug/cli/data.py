"""Opens the training and evaluation data that the flags of `selfaug train` name.

Examples are read where they are needed, and contents of files are never in memory as a whole.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.common.errors import ConfigError, DataError
from selfaug.common.files import missing_path
from selfaug.data.fields import RECEIVED, RowError
from selfaug.data.files import has_split
from selfaug.data.folders import evaluation_splits
from selfaug.data.read import Reading, hub_split, open_rows, open_table
from selfaug.data.reasons import WARN_ABOVE_SHARE, by_reason, reason_lines
from selfaug.data.record import Conversation
from selfaug.data.split import Example, hold_out, titles_of
from selfaug.run.model_source import looks_local

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from selfaug.cli.parsing import Settings

__all__ = [
    "Source",
    "Sources",
    "bad_row_lines",
    "bad_rows_by_reason",
    "bad_rows_warning",
    "leak_lines",
    "open_sources",
]

_BUILDERS = ("json", "csv", "parquet")  # names under which `load_dataset` reads files
_TRL_COLUMNS = ({"prompt", "completion"}, {"messages"}, {"text"}, {"input_ids"})


@dataclass(frozen=True)
class Part:
    """A part of the examples of one file, folder or data set.

    Args:
        reading: All examples.
        kept: Indices of the examples of this part; ``None`` for all.
    """

    reading: Reading
    kept: range | None = None

    def __iter__(self) -> Iterator[Example]:
        for place, example in enumerate(self.reading):
            if self.kept is None or place in self.kept:
                yield example


class Source:
    """The examples of one split. Each iteration reads them again.

    Args:
        name: Name that the user gave.
        parts: Parts of the split; empty where ``table`` is given.
        table: Table of the hub in one of TRL's own formats, which TRL tokenises; ``None`` for none.
        side: Side of a division that the split consists of; ``None`` for all examples.
    """

    def __init__(
        self,
        name: str,
        parts: Sequence[Part] | Mixture = (),
        table: Dataset | IterableDataset | None = None,
        side: Side | None = None,
    ) -> None:
        self.name = name
        self.table = table
        self.side = side
        self._parts = parts

    @property
    def parts(self) -> Sequence[Part]:
        """The parts of the split."""
        return self._parts.parts if isinstance(self._parts, Mixture) else self._parts

    def __iter__(self) -> Iterator[Example]:
        if self.table is not None:
            for row in self.table:
                messages = row.get("messages")
                yield Conversation(tuple(messages)) if isinstance(messages, list) else dict(row)
            return
        for place, example in enumerate(example for part in self.parts for example in part):
            if self.side is None or place in self.side:
                yield example

    def of(self, side: Side) -> Source:
        """Return one side of the split."""
        return Source(self.name, self._parts, side=side)

    @property
    def readings(self) -> list[Reading]:
        """The readings of all parts, each once."""
        mixture = self._parts
        return mixture.readings if isinstance(mixture, Mixture) else [part.reading for part in mixture]

    @cached_property
    def is_trl(self) -> bool:
        """Whether the rows are in one of TRL's own formats, by the first ones."""
        firsts = [reading.first() for reading in self.readings]
        return self.table is not None or isinstance(firsts[0], dict)

    def identity(self) -> list[Any]:
        """Return everything that decides the examples, except the contents of files, as JSON."""
        shares = self._parts.identity() if isinstance(self._parts, Mixture) else None
        side = None if self.side is None else self.side.identity()
        return [self.name, [reading.identity for reading in self.readings], shares, side]

    def described(self) -> dict[str, Any]:
        """Return the manifest's entry for a table of the hub."""
        rows = len(self.table) if hasattr(self.table, "__len__") else None  # type: ignore[arg-type]
        fingerprint = getattr(self.table, "_fingerprint", None)
        return {"name": self.name, "format": "trl", "rows": rows, "fingerprint": fingerprint}


@dataclass(frozen=True)
class Side:
    """One of the two sides of a division.

    Args:
        division: Division into training and held-out examples.
        held_out: Whether this is the held-out side.
    """

    division: Division
    held_out: bool

    def __contains__(self, place: int) -> bool:
        return (place in self.division.held_out) == self.held_out

    def identity(self) -> list[Any]:
        """Return everything that decides the side, as JSON."""
        return [self.held_out, *self.division.identity]


class Division:
    """A division of examples into a training and a held-out side, which is drawn on first use.

    Args:
        whole: All examples.
        draw: Function from all examples to the indices of the held-out ones.
        identity: Everything besides the examples that decides the draw, as JSON.
        describe: Function from all examples and the held-out indices to lines for the user; ``None`` for no lines.
    """

    def __init__(
        self,
        whole: Source,
        draw: Callable[[Source], Collection[int]],
        identity: list[Any],
        describe: Callable[[Source, Collection[int]], list[str]] | None = None,
    ) -> None:
        self.identity = identity
        self._whole = whole
        self._draw = draw
        self._describe = describe

    @cached_property
    def held_out(self) -> Collection[int]:
        """The indices of the held-out examples."""
        return self._draw(self._whole)

    def sides(self) -> tuple[Source, Source]:
        """Return the training side and the held-out side."""
        train, held_out = Side(self, held_out=False), Side(self, held_out=True)
        return self._whole.of(train), self._whole.of(held_out)

    @cached_property
    def lines(self) -> list[str]:
        """The lines for the user on the division."""
        return self._describe(self._whole, self.held_out) if self._describe is not None else []


class Mixture:
    """Parts of several data sets, whose examples are counted on first use.

    Args:
        entries: Readings of each entry, and the wanted part of its split (``train[:10%]``) or ``None``.
        fractions: Share of each entry in the mixture; all ``None`` for whole entries.
    """

    def __init__(
        self, entries: Sequence[tuple[Sequence[Reading], str | None]], fractions: Sequence[float | None]
    ) -> None:
        self._entries = entries
        self._fractions = fractions
        self.readings = [reading for readings, _ in entries for reading in readings]

    @cached_property
    def parts(self) -> list[Part]:
        """The parts in the order of the entries."""
        shares = [fraction for fraction in self._fractions if fraction is not None]
        if not shares and all(part is None for _, part in self._entries):
            return [Part(reading) for reading in self.readings]
        counts = [[sum(1 for _ in reading) for reading in readings] for readings, _ in self._entries]
        kept = [_kept(sum(count), part) for count, (_, part) in zip(counts, self._entries, strict=True)]
        if shares:
            shares = [share / sum(shares) for share in shares]
            total = min(len(places) / share for places, share in zip(kept, shares, strict=True) if share > 0)
            kept = [places[: round(share * total)] for places, share in zip(kept, shares, strict=True)]
        parts = []
        for (readings, _), of_entry, places in zip(self._entries, counts, kept, strict=True):
            before = 0
            for reading, count in zip(readings, of_entry, strict=True):
                parts.append(Part(reading, range(max(places.start - before, 0), max(places.stop - before, 0))))
                before += count
        return parts

    def identity(self) -> list[Any]:
        """Return everything besides the readings that decides the parts, as JSON."""
        return [[[len(readings), part] for readings, part in self._entries], list(self._fractions)]


def _kept(count: int, part: str | None) -> range:
    """Return the indices of a part of a split, such as ``train[:10%]``, as ``datasets`` (and so TRL) counts them."""
    if part is None:
        return range(count)
    from datasets import ReadInstruction

    split = part.partition("[")[0]
    try:
        (kept,) = ReadInstruction.from_spec(part).to_absolute({split: count})
    except (AssertionError, ValueError) as error:
        raise ConfigError(
            f"datasets: split {part!r} is no part of one split ({error})", "write it like train[:10%]."
        ) from None
    return range(count)[kept.from_ : kept.to]


@dataclass(frozen=True)
class Sources:
    """The training and the evaluation data.

    Args:
        train: Training examples.
        evaluation: Evaluation examples; ``None`` for no evaluation.
        disjoint: Whether the division itself leaves no document on both sides, so that no check for leaks is needed.
    """

    train: Source
    evaluation: Source | None = None
    disjoint: bool = False


def open_sources(settings: Settings) -> Sources:
    """Open the data that ``dataset_name``, ``datasets``, ``eval_dataset`` and ``held_out`` name.

    Raises:
        ConfigError: If flags are missing or contradict each other, or the base should rewrite rows in one of TRL's own
            formats.
        DataError: If a file, or one of its first rows, cannot be used.
    """
    from selfaug.before.generated_rows import refuse_rewriting

    sources = _opened(settings)
    trains_trl, *_ = [source.is_trl for source in (sources.train, sources.evaluation) if source is not None]
    if trains_trl and settings.training.changes.rewrite is not None:
        raise refuse_rewriting(settings.training.method, sources.train.name)
    return sources


def _opened(settings: Settings) -> Sources:
    wants_eval = str(getattr(settings.training.eval_strategy, "value", settings.training.eval_strategy)) != "no"
    if settings.mixture.datasets:
        return _mixture(settings, wants_eval)
    name = settings.script.dataset_name
    if not name:
        raise ConfigError("no data is given", "pass --dataset_name, a file, a folder or a data set of the hub.")
    train = _read(settings, name, (settings.script.dataset_train_split,), "dataset_name")
    if settings.run.held_out is not None:
        return _held_out(train, settings.run.held_out, settings.training.seed)
    evaluated = evaluation_splits(settings.script.dataset_test_split)
    if settings.run.eval_dataset is not None:
        return Sources(train, _read(settings, settings.run.eval_dataset, evaluated, "eval_dataset"))
    if not wants_eval:
        return Sources(train)
    if looks_local(name) and not has_split(Path(name).expanduser(), evaluated):
        raise ConfigError(
            f"eval_strategy asks for evaluation, and {name} has no {evaluated[0]} split beside its training data",
            "pass --eval_dataset FILE or --held_out 0.1, or leave --eval_strategy out.",
        )
    return Sources(train, _read(settings, name, evaluated, "dataset_name"))


def _read(settings: Settings, name: str, splits: Sequence[str], setting: str) -> Source:
    if looks_local(name):
        path = Path(name).expanduser()
        if not path.exists():
            raise missing_path(setting, name, "check the path; a data set of the hub has the form owner/name.")
        if settings.script.dataset_streaming:
            raise ConfigError(
                f"dataset_streaming is for data sets of the hub, and {name} is on this machine", "leave it out."
            )
        return _rows(settings, path, splits)
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
    return _rows(settings, name, splits)


def _rows(settings: Settings, path: str | Path, splits: Sequence[str]) -> Source:
    reading = _reading(settings, path, splits)
    return Source(reading.name, [Part(reading)])


def _reading(settings: Settings, path: str | Path, splits: Sequence[str], columns: list[str] | None = None) -> Reading:
    run = settings.run
    return open_rows(path, format=run.format, mapping=run.map, on_bad_row=run.on_bad_row, split=splits, columns=columns)


def bad_row_lines(problems: Sequence[RowError], good: int) -> list[str]:
    """Return lines on the bad rows that were left out, by reason."""
    return reason_lines(_reasons(problems), good + len(problems), "bad rows left out")


def bad_rows_by_reason(problems: Sequence[RowError]) -> dict[str, int]:
    """Return the number of bad rows that were left out, by reason."""
    return {reason.text: reason.count for reason in by_reason(_reasons(problems))}


def _reasons(problems: Sequence[RowError]) -> list[tuple[str, str]]:
    def reason(bad: RowError) -> str:
        expected = f"expected {bad.expected}{RECEIVED}{bad.received}"
        return f"field {bad.field}: {expected}" if bad.field else expected

    return [(reason(bad), bad.message) for bad in problems]


def bad_rows_warning(name: str, problems: Sequence[RowError], good: int) -> tuple[str, str] | None:
    """Return a warning and a hint if so many rows are bad that the format is probably another; else ``None``."""
    total = good + len(problems)
    if len(problems) <= WARN_ABOVE_SHARE * total:
        return None
    return (
        f"only {good} of {total} rows of {name} can be used: {len(problems)} "
        f"({100 * len(problems) / total:.0f} %) are bad and left out.",
        "look at the reasons; --format names the format where the rows are in another than was taken for theirs.",
    )


def leak_lines(sources: Sources) -> list[str]:
    """Return lines for the user on what training and evaluation data share; reads both."""
    from selfaug.data.leaks import check_leaks

    train, evaluation = sources.train, sources.evaluation
    assert evaluation is not None
    if any(source.table is not None and not hasattr(source.table, "__len__") for source in (train, evaluation)):
        streamed = "was not checked: one of them is streamed"
        return [f"whether {evaluation.name} shares rows with the training data {streamed}"]
    return check_leaks(train, list(evaluation)).warning(evaluation.name)


def _hub_table(settings: Settings, name: str, splits: Sequence[str]) -> Dataset | IterableDataset:
    from datasets import load_dataset

    config = settings.script.dataset_config
    split = hub_split(name, splits, config)
    try:
        return load_dataset(name, name=config, split=split, streaming=settings.script.dataset_streaming)
    except Exception as error:  # the hub's client passes on errors of its HTTP library, cache and builders
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
        entries = [_entry(settings, entry) for entry in mixture.datasets]
        _check_alike([reading for readings, _ in entries for reading in readings])
        fractions = [entry.fraction for entry in mixture.datasets]
        train, test = _joined(entries, fractions, mixture.test_split_size, settings.training.seed)
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
    return Sources(train, evaluation)


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


def _entry(settings: Settings, entry: Any) -> tuple[list[Reading], str | None]:
    """Return the readings of one entry, and the wanted part of its split if that must still be taken.

    Rows never share a table with rows of other entries.
    """
    split, _, part = entry.split.partition("[")
    if entry.path not in _BUILDERS and not (looks_local(entry.path) and entry.data_files is None):
        run = settings.run
        table = _hub_entry(entry)
        reading = open_table(table, entry.path, format=run.format, mapping=run.map, on_bad_row=run.on_bad_row)
        return [reading], None
    found = []
    for name in _named_files(entry, split):
        path = Path(name).expanduser()
        if not path.exists():
            raise missing_path("datasets: path", name, "check the path; a hub name has the form owner/name.")
        found.append(_reading(settings, path, (split,), entry.columns))
    return found, entry.split if part else None


def _named_files(entry: Any, split: str) -> list[str]:
    """Return the files, or the folder, that an entry names."""
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


def _check_alike(readings: Sequence[Reading]) -> None:
    """Check that all data sets are of one kind: either our items, or TRL's rows of the same columns.

    Raises:
        DataError: If they are not.
    """
    kinds = [(reading, _kind(reading.first())) for reading in readings]
    for reading, kind in kinds[1:]:
        if kind != kinds[0][1]:
            raise DataError(
                f"{kinds[0][0].name} has {kinds[0][1]} and {reading.name} has {kind}, which cannot be trained together",
                "convert one of them, or train on one alone.",
            )


def _kind(example: Example) -> str:
    if not isinstance(example, dict):
        return "records or messages"
    return "the columns " + ", ".join(sorted(example.keys() - {"tools", "chat_template_kwargs"}))


def _joined(
    entries: Sequence[tuple[Sequence[Reading], str | None]],
    fractions: Sequence[float | None],
    test_size: float | None,
    seed: int,
) -> tuple[Source, Source | None]:
    """Return the mixture, and the part that ``test_split_size`` takes from it; shares are counted as in TRL."""
    given = [fraction for fraction in fractions if fraction is not None]
    if given and (len(given) < len(fractions) or min(given) < 0 or sum(given) <= 0):
        raise ConfigError(
            f"datasets: fraction is {list(fractions)} over the entries, and shares are parts of one mixture",
            "give each entry a fraction above 0, or none of them.",
        )
    whole = Source("datasets", Mixture(entries, fractions))
    if test_size is None:
        return whole, None

    def draw(examples: Source) -> frozenset[int]:
        total = sum(1 for _ in examples)
        count = round(test_size * total) if test_size < 1 else int(test_size)
        if not 0 < count < total:
            raise ConfigError(
                f"test_split_size={test_size:g} of {total} rows leaves nothing to train on or to evaluate on",
                "give a part between 0 and 1, or a number of rows.",
            )
        return frozenset(random.Random(seed).sample(range(total), count))

    return Division(whole, draw, ["test_split_size", test_size, seed]).sides()


def _held_out(train: Source, fraction: float, seed: int) -> Sources:
    if train.table is not None:
        raise ConfigError(
            f"held_out is for files of this machine, and {train.name} is a table of the hub",
            "use its own test split: --eval_strategy epoch, and --dataset_test_split where it has another name.",
        )

    def describe(examples: Source, held_out: Collection[int]) -> list[str]:
        titles: tuple[set[str], set[str]] = (set(), set())
        count = 0
        for count, example in enumerate(examples, start=1):
            titles[count - 1 in held_out].update(titles_of(example))
        lines = [f"held out: {len(held_out)} of {count} examples, no document on both sides"]
        if shared := len(titles[0] & titles[1]):
            lines.append(
                f"  {shared} titles are on both sides; `selfaug prepare --group_by title` keeps a title on one side"
            )
        return lines

    division = Division(
        train, lambda examples: hold_out(examples, fraction, seed).places, ["held_out", fraction, seed], describe
    )
    return Sources(*division.sides(), disjoint=True)
