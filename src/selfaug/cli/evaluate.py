"""`selfaug evaluate`: what a run gained at its task and lost elsewhere, base and tuned on the same prompts.

The table (or with `--json` the results) goes to stdout; everything else to stderr. Finished parts lie in
`RUN/evaluation` and are not repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.cli.evaluate_options import Settings, add_flags, resolve
from selfaug.cli.outputs import check_writable
from selfaug.common.progress import counting
from selfaug.common.terminal import emit, say

if TYPE_CHECKING:
    from selfaug.run.folder import RunFolder
    from selfaug.run.models import Origin

__all__ = ["add_parser", "results_table", "run"]


def add_parser(subparsers: Any) -> None:
    """The flags of the verb."""
    add_flags(subparsers.add_parser("evaluate", help="measure what a run gained and lost", description=__doc__))


def run(args: argparse.Namespace) -> int:
    """Check everything, measure what is not measured yet, write results; the exit code."""
    settings = resolve(args)
    from selfaug.cli.evaluate_parts import all_parts
    from selfaug.common.store import Store
    from selfaug.evaluation.run import evaluate, kept_parts, write
    from selfaug.run.folder import RunFolder
    from selfaug.run.models import Sides, check_origin

    folder = RunFolder.open(str(settings.run))
    check_writable(folder.path, "the run folder")
    if settings.store is not None:
        check_writable(Path(settings.store).expanduser(), "store")
    origin = check_origin(folder, settings.base)
    say("reading what is to be measured ...")
    parts = all_parts(settings, folder, origin)
    store = Store(Path(settings.store).expanduser() if settings.store else folder.evaluation)
    results = _head(settings, folder, origin, args.argv)
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
        if new:  # what was finished is there to be read, whatever stopped the rest
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
    return 0


def _head(settings: Settings, folder: RunFolder, origin: Origin, argv: Sequence[str]) -> dict[str, Any]:
    """Everything of the results but the parts."""
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
        "config": redacted({**dataclasses.asdict(settings), "run": str(settings.run)}),
        "seeds": {"bootstrap": settings.seed, **{f"train_{k}": v for k, v in manifest.get("seeds", {}).items()}},
        "versions": versions("lm_eval"),
        "hashes": {
            "base": origin.base_hash,
            "tuned": origin.tuned_hash,
            "tokenizer": manifest.get("tokenizer"),
            "renderer": renderer_hash(origin.final),
            "train_config": config_hash(config),
        },
        "device": device(),
        "parts": {},
    }


def results_table(results: Mapping[str, Any]) -> str:
    """One line a metric: base, tuned, the difference with its 95 % interval; ``*`` marks a part's primary metric."""
    from selfaug.shift.table import columns

    head = ("part", "metric", "base", "tuned", "difference", "95 % interval", "n", "better")
    rows: list[Sequence[str]] = []
    for name, part in results["parts"].items():
        for label, entry in part["metrics"].items():
            apart = entry["difference"]
            interval = apart["interval"]
            rows.append(
                (
                    name,
                    label + ("*" if entry["primary"] else ""),
                    f"{entry['base']['value']:.4f}",
                    f"{entry['tuned']['value']:.4f}",
                    f"{apart['value']:+z.4f}",
                    "-" if interval is None else f"{interval[0]:+z.4f} .. {interval[1]:+z.4f}",
                    str(apart["n"]),
                    "higher" if entry["higher_is_better"] else "lower",
                )
            )
    return columns(head, rows, 2)
