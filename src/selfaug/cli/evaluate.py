"""`selfaug evaluate`: measures what a run gained at its task and lost elsewhere, against its base on the same prompts.

The table (or with `--json` the results) goes to stdout, everything else to stderr. Finished parts are stored in
`RUN/evaluation` and not repeated.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfaug.cli.config import Call, Command
from selfaug.cli.options import DTYPES, OnBadRow, bad_rows, data_format, field_map, track
from selfaug.cli.outputs import check_writable
from selfaug.cli.subject import Subject, opened
from selfaug.common.errors import ConfigError
from selfaug.common.options import option
from selfaug.common.progress import counting
from selfaug.common.terminal import emit, say
from selfaug.lab import shipped

if TYPE_CHECKING:
    from selfaug.run.folder import RunFolder
    from selfaug.run.models import Origin

__all__ = ["COMMAND", "Measurement", "Settings", "check_settings", "results_table", "run"]


@dataclass
class Measurement(Subject):
    """Options of a verb that measures the task and general ability."""

    data: list[str] = option(
        [], "Records to answer.", group="The task", metavar="PATH", shown="what the run held out or evaluated on"
    )
    format: str = data_format()
    map: list[str] | None = field_map()
    on_bad_row: OnBadRow = bad_rows()
    limit: int | None = option(None, "Number of records of each data set, from the first.")
    no_task: bool = option(False, "Measure only general ability.")
    max_new_tokens: int = option(128, "Longest answer in tokens.")
    max_length: int | None = option(None, "Longest prompt with accepted answer in tokens.", shown="as in training")
    truncate: Literal["by_score", "by_gold"] = option(
        "by_score",
        "What decides which documents of a prompt that is too long are dropped: 'by_score' the retriever's scores, "
        "else their order; 'by_gold' also the data's marks of documents that hold the answer, as in training, which no "
        "retriever knows.",
    )
    abstentions: str | None = option(None, "YAML file of further phrases that count as abstention.", metavar="FILE")
    judge_url: str | None = option(
        None,
        "OpenAI-compatible endpoint of a judge that gives the CRAG verdicts in place of rules.",
        group="Judge of the answers (without it, rules)",
        metavar="URL",
    )
    judge_model: str | None = option(None, "Name of the judge's model at the endpoint.", metavar="NAME")
    judge_key_env: str = option("OPENAI_API_KEY", "Environment variable with the API key.", metavar="NAME")
    judge_timeout: float = option(60.0, "Seconds for one verdict.", metavar="SECONDS")
    judge_retries: int = option(4, "Number of retries of one verdict.")
    general: list[str] = option(
        [],
        "'paper', 'quick', 'offline', or any task of lm_eval; NAME=FILE takes the task's data from a file.",
        group="General ability",
        metavar="NAME",
    )
    general_data: list[str] = option([], "Plain texts (.txt, .json, .jsonl) to measure the NLL of.", metavar="FILE")
    general_limit: int | None = option(None, "Number of items of each general task, in place of its own limit.")
    max_gen_toks: int | None = option(None, "Longest answer of general tasks in tokens, in place of their own limit.")
    include_path: str | None = option(None, "Folder with further task YAMLs of lm_eval.", metavar="FOLDER")
    allow_code_execution: bool = option(False, "Let tasks run code that the model writes; use only in a sandbox.")
    backend: Literal["hf", "vllm"] = option(
        "hf", "Backend of general tasks; 'hf' uses the model that is loaded anyway."
    )
    batch_size: int = option(8, "Prompts in a batch.", group="Model")
    dtype: str = option("auto", "Number format of the weights; 'auto' is the base's own.", choices=DTYPES)
    base: str | None = option(
        None, "Folder or hub name of the base model, if it has moved since training.", metavar="MODEL"
    )
    seed: int = option(0, "Seed of the bootstrap.", group="Results")
    store: str | None = option(
        None, "Folder of finished parts; runs with one base can share it.", metavar="FOLDER", shown="RUN/evaluation"
    )


@dataclass
class Settings(Measurement):
    """Settings of `selfaug evaluate`."""

    output_dir: str | None = option(
        None,
        "Folder of the results of an adapter or model of another trainer.",
        metavar="FOLDER",
        shown="measured-NAME beside it",
    )
    fresh: bool = option(False, "Repeat parts that are finished.")
    json: bool = option(False, "Print the results as JSON instead of a table.")
    track: bool = track()


COMMAND = Command(
    "evaluate",
    Settings,
    __doc__ or "",
    (
        "selfaug evaluate runs/mine --data held_out.jsonl --general quick",
        "selfaug evaluate --adapter out/checkpoint-500 --model_name_or_path Qwen/Qwen3-0.6B --data test.jsonl "
        '--prompt \'{"mode": "chat"}\'',
        "selfaug evaluate runs/mine --no_task --general arc_challenge --general_data news.txt --general_limit 200",
    ),
)


def run(call: Call[Settings]) -> int:
    """Check everything, measure missing parts, write the results, and return the exit code."""
    settings = call.settings
    if settings.base is not None:
        settings.base = shipped.resolve(settings.base)
    check_settings(settings)
    from selfaug.cli.evaluate_parts import all_parts
    from selfaug.cli.tracking import of_evaluation
    from selfaug.common.store import Store
    from selfaug.evaluation.run import evaluate, kept_parts, write
    from selfaug.run.foreign import describe
    from selfaug.run.models import Sides, check_origin
    from selfaug.run.trackers import send

    folder = opened(settings, output_dir=settings.output_dir)
    check_writable(folder.path, "the run folder" if folder.foreign is None else "output_dir")
    if settings.store is not None:
        check_writable(Path(settings.store).expanduser(), "store")
    origin = check_origin(folder, settings.base)
    if not settings.no_task or settings.general_data:
        origin.require_plain_head()
    say("reading what is to be measured ...")
    parts = all_parts(settings, folder, origin)
    describe(folder)
    store = Store(Path(settings.store).expanduser() if settings.store else folder.evaluation)
    results = _head(settings, folder, origin, call.argv)
    old, samples = kept_parts(folder.results, folder.samples, results["hashes"], [part.name for part in parts])
    results["parts"] |= old
    measured = evaluate(
        parts,
        Sides(origin, settings.dtype),
        store,
        seed=settings.seed,
        bar=counting,
        say=say,
        fresh=settings.fresh,
    )
    new = 0
    try:
        for name, entry, lines in measured:
            results["parts"][name] = entry
            samples += lines
            new += 1
    except BaseException:
        if new:  # finished parts are written even if an error or interruption stopped the rest
            write(folder, results, samples)
        raise
    write(folder, results, samples)
    for name, entry in results["parts"].items():
        for reason, count in entry["left_out"].items():
            say(f"{name}: {count} left out: {reason}")
        unparsed = entry["counts"].get("judge_unparsed")
        if unparsed and any(unparsed.values()):
            say(f"{name}: verdicts of the judge that could not be read: base {unparsed['base']}, tuned "
                f"{unparsed['tuned']}; such as {entry['counts']['judge_replies_not_understood'][:1]}")  # fmt: skip
    emit(json.dumps(results, ensure_ascii=False) if settings.json else results_table(results))
    say(f"written: {folder.results}")
    if settings.track:
        send(folder, of_evaluation(results))
    return 0


def check_settings(settings: Measurement) -> None:
    """Check that options are in range and do not contradict each other.

    Raises:
        ConfigError: If they are not.
    """
    for name in ("max_new_tokens", "max_length", "limit", "general_limit", "max_gen_toks", "batch_size"):
        number = getattr(settings, name)
        if number is not None and number < 1:
            raise ConfigError(f"{name} is {number}, and it counts something", "give 1 or more.")
    if settings.seed < 0:
        raise ConfigError(f"seed is {settings.seed}, and the bootstrap takes none below 0", "give 0 or more.")
    if not settings.judge_timeout > 0 or settings.judge_retries < 0:
        raise ConfigError("judge_timeout and judge_retries count seconds and tries", "give more than 0, and 0 or more.")
    if (settings.judge_url is None) != (settings.judge_model is None):
        raise ConfigError(
            "judge_url and judge_model belong together: where the judge is, and which model gives the verdicts there",
            "pass both, or neither for verdicts by rules.",
        )
    if settings.no_task and not settings.general and not settings.general_data:
        raise ConfigError("no_task leaves nothing to measure", "name --general tasks or --general_data, or drop it.")
    if settings.no_task and settings.data:
        raise ConfigError("no_task and data contradict each other", "pass one of them.")
    if settings.backend != "hf" and not settings.general:
        raise ConfigError(f"backend {settings.backend} runs general tasks, and none is named", "name --general tasks.")
    if settings.backend != "hf" and importlib.util.find_spec(settings.backend) is None:
        raise ConfigError(
            f"backend {settings.backend} needs the package {settings.backend}, which is not installed",
            f"install it (`pip install {settings.backend}`), or leave --backend out.",
        )


def _head(settings: Settings, folder: RunFolder, origin: Origin, argv: Sequence[str]) -> dict[str, Any]:
    """Return the results without the parts."""
    from selfaug.common.fingerprint import versions
    from selfaug.common.redaction import redacted, without_secrets
    from selfaug.run.manifest import config_hash, device
    from selfaug.run.models import renderer_hash

    config = folder.read_config()
    manifest = folder.read_manifest()
    return {
        "schema": 1,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": without_secrets(["selfaug", "evaluate", *argv]),
        "run": {
            "name": folder.path.resolve().name,
            "method": config.get("method"),
            "kind": "adapter" if origin.adapter else "model",
            "model": config.get("model_name_or_path"),
        },
        "config": redacted(dataclasses.asdict(settings)),
        "seeds": {"bootstrap": settings.seed, **{f"train_{k}": v for k, v in manifest.get("seeds", {}).items()}},
        "versions": versions("lm_eval"),
        "hashes": {
            "base": origin.base_hash,
            "tuned": origin.tuned_hash,
            "tokenizer": manifest.get("tokenizer"),
            "renderer": renderer_hash(origin.final if folder.foreign is None else folder.path),
            "train_config": config_hash(config),
        },
        "device": device(),
        "parts": {},
    }


def results_table(results: Mapping[str, Any]) -> str:
    """Return a table with a line for each metric; ``*`` marks a part's primary metric, intervals are of 95 %.

    Lost and gained items (right before and wrong now, and the reverse) are counted where an item is right or wrong;
    behind them stands how many of these noise does not explain.
    """
    from selfaug.shift.table import columns

    head = ("part", "metric", "base", "tuned", "difference", "95 % interval", "n", "better", "lost", "gained")
    rows: list[Sequence[str]] = []
    for name, part in results["parts"].items():
        for label, entry in part["metrics"].items():
            gap = entry["difference"]
            interval = gap["interval"]
            rows.append(
                (
                    name,
                    label + ("*" if entry["primary"] else ""),
                    f"{entry['base']['value']:.4f}",
                    f"{entry['tuned']['value']:.4f}",
                    f"{gap['value']:+z.4f}",
                    "-" if interval is None else f"{interval[0]:+z.4f} .. {interval[1]:+z.4f}",
                    str(gap["n"]),
                    "higher" if entry["higher_is_better"] else "lower",
                    *_flips(entry.get("flips")),
                )
            )
    return columns(head, rows, 2)


def _flips(entry: Mapping[str, int] | None) -> tuple[str, str]:
    if entry is None:
        return "-", "-"
    lost, gained = (f"{entry[name]} ({entry[f'surely_{name}']})" for name in ("lost", "gained"))
    return lost, gained
