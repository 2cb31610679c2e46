"""`selfaug shift`: measures how far a run moved the model's distribution from its base's, by region and layer."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfaug.cli.config import Call, Command
from selfaug.cli.options import DTYPES, OnBadRow, bad_rows, field_map
from selfaug.cli.subject import Subject, opened
from selfaug.common.errors import ConfigError, DataError
from selfaug.common.files import read_json
from selfaug.common.options import option
from selfaug.common.progress import counting
from selfaug.common.terminal import emit, say, warn
from selfaug.data.reasons import WARN_ABOVE_SHARE

if TYPE_CHECKING:
    from selfaug.run.folder import RunFolder
    from selfaug.run.models import Origin, Sides, State
    from selfaug.shift.measure import Text

__all__ = ["COMMAND", "run"]


@dataclass
class Settings(Subject):
    """Settings of `selfaug shift`."""

    checkpoints: Literal["last", "all"] = option(
        "last", "'last' for the finished weights alone, 'all' for every checkpoint too.", group="Weights of a run"
    )
    dataset_name: str | None = option(
        None,
        "File of records or messages.",
        group="Data of the task",
        metavar="DATA",
        shown="what the run evaluated on or held out, else its training data",
    )
    map: list[str] | None = field_map()
    on_bad_row: OnBadRow = bad_rows()
    limit: int = option(200, "Number of rows, drawn by the seed; 0 for all.")
    max_length: int | None = option(None, "Longest row or piece of text in tokens.", shown="the run's")
    general_text: str | None = option(
        None,
        "Text that is no part of the task: a .txt file, or .json with a list of texts.",
        group="General text",
        metavar="FILE",
    )
    general_limit: int = option(200, "Number of pieces of general text, drawn by the seed; 0 for all.")
    layers: bool = option(True, "Whether hidden states are compared too.", group="Model and passes")
    seed: int = option(0, "Seed of the draws.")
    dtype: str = option("auto", "Number format of the model; 'auto' is the base's own.", choices=DTYPES)
    batch_tokens: int = option(4096, "Largest number of tokens in one pass.")
    memory_mb: int | None = option(None, "Memory for logits in MiB.", shown="96 on a CPU, 512 elsewhere")
    output_dir: str | None = option(
        None,
        "Folder of shift.json for an adapter or model of another trainer.",
        group="Output",
        metavar="FOLDER",
        shown="measured-NAME beside it",
    )
    json: bool = option(False, "Print shift.json instead of the table.")


COMMAND = Command(
    "shift",
    Settings,
    __doc__ or "",
    (
        "selfaug shift runs/mine --dataset_name held_out.jsonl --general_text news.txt",
        "selfaug shift --adapter out/checkpoint-500 --model_name_or_path Qwen/Qwen3-0.6B --dataset_name test.jsonl "
        '--prompt \'{"mode": "chat"}\'',
        "selfaug shift runs/mine --checkpoints all --limit 50 --layers false",
    ),
)


def run(call: Call[Settings]) -> int:
    """Measure missing states, write ``shift.json`` after each, print the table, and return the exit code."""
    from selfaug.cli.outputs import check_writable
    from selfaug.common.store import key_of
    from selfaug.run.foreign import describe
    from selfaug.run.models import Sides, check_origin, states

    settings = call.settings
    _check(settings)
    folder = opened(settings, output_dir=settings.output_dir)
    check_writable(folder.path, "the run folder" if folder.foreign is None else "output_dir")
    if folder.foreign is not None:
        _check_foreign(settings, folder)

    weights = states(folder, every=settings.checkpoints == "all")
    origin = check_origin(folder, flag=None)
    origin.require_plain_head()
    texts, sources = _texts(settings, folder)
    sides = Sides(origin, settings.dtype, together=True)
    describe(folder)
    head = _head(settings, folder, origin, sources)
    if folder.foreign is not None:  # whose prompt layout and tokenizer may differ from call to call
        head["settings"]["texts"] = key_of({"texts": [(text.input_ids, text.regions) for text in texts]})
    path = folder.shift
    known = _known(path, head)
    measured: list[dict[str, Any]] = []
    for state in weights:
        measured.append(_entry(state, sides, texts, settings, [*known, *measured]))
        _write(path, head, [*measured, *_later(known, weights, measured)])
    whole = read_json(path)
    if settings.json:
        emit(json.dumps(whole, indent=2, ensure_ascii=False))
    else:
        from selfaug.shift.table import shift_table

        emit(shift_table(whole))
    say(f"written to {path}")
    return 0


def _check(settings: Settings) -> None:
    for name, least in (("limit", 0), ("general_limit", 0), ("max_length", 3), ("batch_tokens", 1), ("memory_mb", 1)):
        value = getattr(settings, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name} is {value}", f"give {least} or more.")


def _check_foreign(settings: Settings, folder: RunFolder) -> None:
    assert folder.foreign is not None
    name = folder.foreign.name
    if settings.checkpoints == "all":
        raise ConfigError(
            f"checkpoints is 'all', and which checkpoints led to {name} is not known",
            "measure each checkpoint folder with --adapter.",
        )
    if settings.dataset_name is None and folder.foreign.trained_on is None:
        raise ConfigError(
            f"the data of {name} is not known, so there is nothing of its task to measure on",
            "pass --dataset_name FILE.",
        )


def _texts(settings: Settings, folder: RunFolder) -> tuple[list[Text], dict[str, Any]]:
    from selfaug.cli.encoding import load_tokenizer
    from selfaug.common.fingerprint import files_of
    from selfaug.shift.texts import general_texts, run_data, sampled, task_texts

    config = folder.read_config()
    tokenizer = load_tokenizer(folder.tokenizer, trust_remote_code=bool(config.get("trust_remote_code")))
    renderer = folder.load_renderer()
    general = None if settings.general_text is None else Path(settings.general_text).expanduser()
    longest = settings.max_length or config.get("max_length")
    pieces, there = ([], 0) if general is None else general_texts(
        general, tokenizer, longest or 1024, settings.general_limit, settings.seed
    )  # fmt: skip
    items, name, files = run_data(settings.dataset_name, config, settings.on_bad_row, settings.map)
    chosen = sampled(items, settings.limit, settings.seed)
    texts, too_long = task_texts(chosen, tokenizer, renderer, longest)
    if too_long:
        left_out = f"{too_long} of {len(chosen)} rows do not fit max_length={longest} and are left out."
        if too_long > WARN_ABOVE_SHARE * len(chosen):
            warn(left_out, "raise --max_length: what is left may not speak for your data.")
        else:
            say(left_out)
    sources = {
        "data": {
            "name": name,
            "files": files_of([file for file in files if file.is_file()]),
            "rows": len(items),
            "measured": len(texts),
            "too_long": too_long,
            "max_length": longest,
        },
        "general_text": None
        if general is None
        else {"files": files_of([general]), "pieces": there, "measured": len(pieces)},
    }
    return [*texts, *pieces], sources


def _head(settings: Settings, folder: RunFolder, origin: Origin, sources: dict[str, Any]) -> dict[str, Any]:
    """Return ``shift.json`` without measurements; earlier ones are valid if ``settings`` to ``base`` are equal."""
    from selfaug.common.fingerprint import versions
    from selfaug.run.manifest import device

    config = folder.read_config()
    deciding = ("limit", "general_limit", "max_length", "layers", "seed", "dtype")
    trained = ("method", "alpha", "align_fraction", "align_direction", "learning_rate", "num_train_epochs", "seed")
    return {
        "schema": 1,
        "unit": "nats per token",
        "run": {name: config.get(name) for name in trained},
        "settings": {name: value for name, value in asdict(settings).items() if name in deciding},
        "sources": sources,
        "base": {"name": origin.base, "weights": origin.base_hash},
        "versions": versions(),
        "device": device(),
    }


def _known(path: Path, head: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return an earlier call's measurements with the same settings, data and base; otherwise none, with a message."""
    if not path.exists():
        return []
    try:
        old = read_json(path)
        same = {name: old[name] == head[name] for name in ("schema", "settings", "sources", "base")}
        entries: list[dict[str, Any]] = old["checkpoints"]
        same["versions"] = old["versions"]["torch"] == head["versions"]["torch"]
    except (DataError, KeyError, TypeError):
        say(f"{path} is damaged and is measured anew.")
        return []
    if all(same.values()):
        return entries
    say(f"measured anew: {', '.join(name for name, equal in same.items() if not equal)} differ from those in {path}.")
    return []


def _entry(
    state: State, sides: Sides, texts: Sequence[Text], settings: Settings, known: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the measurement of one state; an earlier one of the same weights is reused."""
    from selfaug.shift.measure import measure

    origin = sides.origin.at(state.folder)
    about = {"name": state.name, "step": state.step, "weights": origin.tuned_hash}
    for entry in known:
        if entry.get("weights") == origin.tuned_hash:
            return {**entry, **about}
    start = time.perf_counter()
    sides.move(origin)
    with sides.side("tuned") as model, counting(state.name, len(texts)) as progress:
        measurement = measure(
            model,
            sides.reference(),
            texts,
            layers=settings.layers,
            batch_tokens=settings.batch_tokens,
            block_bytes=None if settings.memory_mb is None else settings.memory_mb * 2**20,
            progress=progress,
        )
    return {**about, **measurement, "seconds": round(time.perf_counter() - start, 2)}


def _later(known: Sequence[dict[str, Any]], found: Sequence[State], measured: Sequence[Any]) -> list[dict[str, Any]]:
    """Return earlier measurements of states that are still to come, so that an interruption loses none."""
    names = {state.name for state in found[len(measured) :]} | {entry["name"] for entry in known}
    names -= {entry["name"] for entry in measured}
    return [entry for entry in known if entry["name"] in names]


def _write(path: Path, head: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> None:
    from selfaug.common.store import write_whole

    ordered = sorted(entries, key=lambda entry: (entry["name"] == "final", entry["step"] or 0))
    text = json.dumps({**head, "checkpoints": ordered}, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(path, text + "\n")
