"""`selfaug shift`: how far a run has moved the model's distribution from its base's, where, and in which layers."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.cli.verb_options import MAP_HELP, adder, resolve, switch
from selfaug.common.errors import ConfigError
from selfaug.common.progress import counting
from selfaug.common.terminal import emit, say, warn
from selfaug.data.reasons import WARN_ABOVE_SHARE

if TYPE_CHECKING:
    from selfaug.run.folder import RunFolder
    from selfaug.shift.measure import Text
    from selfaug.shift.pair import Pair, State

__all__ = ["add_parser", "run"]

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass
class Settings:
    """What `selfaug shift` was asked to do; the flags' help says what each means."""

    run: str | None = None
    checkpoints: str = "last"
    dataset_name: str | None = None
    map: list[str] | None = None
    on_bad_row: str = "error"
    limit: int = 200
    general_text: str | None = None
    general_limit: int = 200
    max_length: int | None = None
    layers: bool = True
    seed: int = 0
    dtype: str = "auto"
    batch_tokens: int = 4096
    memory_mb: int | None = None
    json: bool = False


def _flags(parser: argparse.ArgumentParser) -> None:
    add = adder(parser)
    add("checkpoints", "'last' for the finished weights alone, 'all' for every checkpoint too", choices=["last", "all"])
    add(
        "dataset_name",
        "file of records or messages (default: what the run evaluated on or held out, else its training data)",
    )
    add("map", MAP_HELP, nargs="+", metavar="FIELD=PATH")
    add("on_bad_row", "what a row that cannot be used does (default: error)", choices=["error", "skip"])
    add("limit", "rows of it, drawn by the seed; 0 for all (default: 200)", type=int, metavar="N")
    add("general_text", "text that is no part of the task: a .txt file, or .json with a list of texts", metavar="FILE")
    add("general_limit", "pieces of it, drawn by the seed; 0 for all (default: 200)", type=int, metavar="N")
    add("max_length", "tokens of a row or a piece (default: the run's)", type=int, metavar="L")
    add("layers", "whether hidden states are compared too (default: true)", type=switch, metavar="true|false")
    add("seed", "of the draws (default: 0)", type=int, metavar="N")
    add("dtype", "number format of the model; auto is the base's own", choices=DTYPES)
    add("batch_tokens", "tokens of one pass (default: 4096)", type=int, metavar="N")
    add("memory_mb", "memory for logits in MiB (default: 96 on a CPU, 512 elsewhere)", type=int, metavar="N")
    add("json", "print shift.json instead of the table", type=switch, nargs="?", const=True, metavar="true|false")


def add_parser(subparsers: Any) -> None:
    """The flags of the verb."""
    parser = subparsers.add_parser("shift", help="measure how far a run moved the model", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="the --output_dir of a finished `selfaug train`")
    _flags(parser)


def run(args: argparse.Namespace) -> int:
    """Measure what is not measured yet, write ``shift.json`` after each checkpoint, print the table; the exit code."""
    from selfaug.run.folder import RunFolder

    flags = argparse.ArgumentParser()
    _flags(flags)
    settings = resolve(Settings, "shift", flags, args)
    _check(settings)
    folder = RunFolder.open(str(settings.run))
    from selfaug.cli.outputs import check_writable
    from selfaug.shift.pair import Pair, states

    check_writable(folder.path, "the run folder")

    found = states(folder, every=settings.checkpoints == "all")
    texts, sources = _texts(settings, folder)
    pair = Pair(folder, settings.dtype)
    head = _head(settings, folder, pair, sources)
    path = folder.path / "shift.json"
    known = _known(path, head)
    measured: list[dict[str, Any]] = []
    for state in found:
        measured.append(_entry(state, pair, texts, settings, [*known, *measured]))
        _write(path, head, [*measured, *_later(known, found, measured)])
    whole = json.loads(path.read_text(encoding="utf-8"))
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


def _texts(settings: Settings, folder: RunFolder) -> tuple[list[Text], dict[str, Any]]:
    from selfaug.cli.encoding import load_tokenizer
    from selfaug.common.fingerprint import files_of
    from selfaug.data.prompts import Renderer
    from selfaug.shift.texts import general_texts, run_data, sampled, task_texts

    final = folder.finished
    assert final is not None
    tokenizer, renderer, config = load_tokenizer(final), Renderer.load(final), folder.read_config()
    general = None if settings.general_text is None else Path(settings.general_text).expanduser()
    longest = settings.max_length or config.get("max_length")
    pieces, there = ([], 0) if general is None else general_texts(
        general, tokenizer, longest or 1024, settings.general_limit, settings.seed
    )  # fmt: skip
    items, name, files = run_data(settings.dataset_name, config, settings.on_bad_row, settings.map)
    chosen = sampled(items, settings.limit, settings.seed)
    texts, too_long = task_texts(chosen, tokenizer, renderer, longest)
    if too_long:
        told = f"{too_long} of {len(chosen)} rows do not fit max_length={longest} and are left out."
        if too_long > WARN_ABOVE_SHARE * len(chosen):
            warn(told, "raise --max_length: what is left may not speak for your data.")
        else:
            say(told)
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


def _head(settings: Settings, folder: RunFolder, pair: Pair, sources: dict[str, Any]) -> dict[str, Any]:
    """All of ``shift.json`` but the measurements; ``settings`` to ``base`` decide whether old ones still hold."""
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
        "base": {"name": pair.name, "weights": pair.base_hash},
        "versions": versions(),
        "device": device(),
    }


def _known(path: Path, head: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What an earlier call measured with the same settings, data and base; else nothing, and it is said why."""
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        same = {name: old[name] == head[name] for name in ("schema", "settings", "sources", "base")}
        entries: list[dict[str, Any]] = old["checkpoints"]
        same["versions"] = old["versions"]["torch"] == head["versions"]["torch"]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError):
        say(f"{path} is damaged and is measured anew.")
        return []
    if all(same.values()):
        return entries
    say(f"measured anew: {', '.join(name for name, equal in same.items() if not equal)} differ from those in {path}.")
    return []


def _entry(
    state: State, pair: Pair, texts: Sequence[Text], settings: Settings, known: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The measurement of one state; one of the same weights is taken over."""
    from selfaug.run.manifest import weight_files, weights_hash
    from selfaug.shift.measure import measure

    files = weight_files(state.folder)
    if not files:
        raise ConfigError(f"{state.folder} holds no weights", "restore the run's files, or train anew.")
    weights = weights_hash(files, full=True)
    about = {"name": state.name, "step": state.step, "weights": weights}
    for entry in known:
        if entry.get("weights") == weights:
            return {**entry, **about}
    start = time.perf_counter()
    model, base = pair.load(state)
    with counting(state.name, len(texts)) as progress:
        found = measure(
            model,
            base,
            texts,
            layers=settings.layers,
            batch_tokens=settings.batch_tokens,
            block_bytes=None if settings.memory_mb is None else settings.memory_mb * 2**20,
            progress=progress,
        )
    return {**about, **found, "seconds": round(time.perf_counter() - start, 2)}


def _later(known: Sequence[dict[str, Any]], found: Sequence[State], measured: Sequence[Any]) -> list[dict[str, Any]]:
    """Earlier measurements of states that this call has not come to yet, so that an interruption loses none."""
    names = {state.name for state in found[len(measured) :]} | {entry["name"] for entry in known}
    names -= {entry["name"] for entry in measured}
    return [entry for entry in known if entry["name"] in names]


def _write(path: Path, head: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> None:
    from selfaug.common.files import write_durably

    ordered = sorted(entries, key=lambda entry: (entry["name"] == "final", entry["step"] or 0))
    text = json.dumps({**head, "checkpoints": ordered}, indent=1, ensure_ascii=False, allow_nan=False)
    try:
        write_durably(path, text + "\n")
    except OSError as error:
        path.with_name(f".{path.name}.tmp").unlink(missing_ok=True)
        hint = "free some space there; what was written before is kept."
        raise ConfigError(f"{path} cannot be written: {error}", hint) from None
