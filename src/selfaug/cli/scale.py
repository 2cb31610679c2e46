"""`selfaug scale`: scales a trained LoRA's update so that limits on forgetting are kept with the most of the task.

Nothing is trained: base and every scale share one loaded model. Half of the items choose the scale, the other half
confirms it. Exit codes are those of `gate`: 0 where an adapter was written, 1 where no scale keeps the limits, 3 where
the items are too few to tell. Finished measurements are stored and not repeated.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.cli import evaluate
from selfaug.cli.config import Call, Command
from selfaug.cli.outputs import check_free, check_writable, written_whole
from selfaug.cli.subject import opened
from selfaug.common.errors import ConfigError, nearest
from selfaug.common.options import option
from selfaug.common.progress import counting, span
from selfaug.common.terminal import emit, say
from selfaug.run.folder import SCALE

if TYPE_CHECKING:
    from selfaug.common.store import Store
    from selfaug.evaluation.parts import Part
    from selfaug.report.gate import Check, Rule
    from selfaug.run.folder import RunFolder
    from selfaug.run.models import Origin, Sides
    from selfaug.scaling.items import Batches, Measured
    from selfaug.scaling.scales import Scales
    from selfaug.scaling.search import Bench, Trial

__all__ = ["COMMAND", "Settings", "check_settings", "rules_of", "run"]

KNOBS = ("uniform", "groups", "intruders")
_GROUPS = 16


@dataclass(kw_only=True)
class Settings(evaluate.Measurement):
    """Settings of `selfaug scale`."""

    run: str | None = option(
        None,
        "LoRA of any trainer (a folder or a hub name), or the --output_dir of a finished `selfaug train`.",
        group="Adapter",
        metavar="ADAPTER",
        positional=True,
    )
    max_drop: list[str] = option(
        [],
        "Largest loss allowed, such as general=2pt; NAME and LIMIT as for `selfaug gate`.",
        group="Limits (each may be given several times)",
        metavar="NAME=LIMIT",
        repeated=True,
    )
    min_gain: list[str] = option([], "Smallest gain required, such as task=0.", metavar="NAME=LIMIT", repeated=True)
    score: str = option("task", "Group, part or PART:METRIC to keep the most of.", group="Search", metavar="NAME")
    scales: list[float] = option(
        [1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], "Factors on the whole update that may be tried.", metavar="X"
    )
    knobs: list[str] = option(
        list(KNOBS),
        "What is tried: one factor for all modules; then a factor for each group of modules by what it gains and "
        "forgets; then singular directions that the base does not have, shrunk (not over a quantised base).",
        metavar="KNOB",
    )
    looks: int = option(4, "Number of batches of the choosing half, after each of which a trial may stop.")
    output_dir: str | None = option(
        None, "Folder of the scaled adapter.", group="Results", metavar="OUT", shown="scaled-NAME beside it"
    )
    overwrite_output_dir: bool = option(False, "Replace the scaled adapter in OUT.")
    json: bool = option(False, "Print what was tried as JSON instead of a table.")


COMMAND = Command(
    "scale",
    Settings,
    __doc__ or "",
    (
        "selfaug scale runs/mine --max_drop general=2pt --min_gain task=0 --data held_out.jsonl --general quick",
        "selfaug scale out/checkpoint-500 --model_name_or_path Qwen/Qwen3-0.6B --max_drop text:news=0.05 "
        '--score task:answer_nll --data test.jsonl --general_data news.txt --prompt \'{"mode": "chat"}\'',
    ),
)


def run(call: Call[Settings]) -> int:
    """Search, confirm, write the adapter, print what was tried, and return the exit code."""
    settings = call.settings
    rules = rules_of(settings)
    check_settings(settings)
    from selfaug.cli.evaluate_parts import all_parts
    from selfaug.common.store import Store
    from selfaug.evaluation.run import look_ahead
    from selfaug.run.foreign import describe
    from selfaug.run.model_source import check_model
    from selfaug.run.models import Sides, check_origin
    from selfaug.scaling.items import drawn
    from selfaug.scaling.scales import check_scalable, modules_of
    from selfaug.scaling.search import Bench, candidates, check_rules, uniform

    out = _open_adapter(settings)
    folder = opened(settings)
    if out is None:
        out = folder.path.absolute().with_name(f"scaled-{folder.path.name.removeprefix('measured-')}")
    check_writable(folder.path, "the run folder")
    if settings.store is not None:
        check_writable(Path(settings.store).expanduser(), "store")
    origin = check_origin(folder, settings.base)
    check_scalable(origin)
    facts = check_model(origin.base, revision=origin.revision, trust_remote_code=origin.trust_remote_code)
    if "intruders" in settings.knobs and (origin.quantization is not None or facts.quantization is not None):
        if "knobs" in call.given:
            raise ConfigError(
                "the base is quantised, and intruder directions are found in its weights",
                "pass --knobs uniform groups.",
            )
        settings.knobs.remove("intruders")
    _check_output(out, folder, origin, overwrite=settings.overwrite_output_dir)
    say("reading what is to be measured ...")
    parts = all_parts(settings, folder, origin)
    groups = {part.name: (part.name.partition(":")[2] or part.name, _group(part)) for part in parts}
    check_rules(rules, settings.score, groups)
    look_ahead(parts)
    batches, looks = drawn(parts, settings.looks, settings.seed)
    _say_items(batches, looks, settings)
    describe(folder)
    store = Store(Path(settings.store).expanduser() if settings.store else folder.evaluation)
    sides = Sides(origin, settings.dtype)
    modules = modules_of(origin.final)
    grid = sorted(set(settings.scales), reverse=True)
    known = _Known(
        folder.path / SCALE, _head(settings, rules, origin, batches, looks, call.argv), _most_trials(settings, grid)
    )
    bench = Bench(
        partial(_measured, sides, store, settings), batches, rules, settings.score, looks, settings.seed, known.add
    )

    uniform(bench, modules, grid)
    best = candidates(bench.trials)
    if best and len(settings.knobs) > 1:
        _other_knobs(settings, bench, best[0], grid, sides, store, modules, folder, known)
        best = candidates(bench.trials)
    known.most = len(bench.trials) + len(best)
    confirmed = None
    for trial in best:
        found = bench.confirm(trial.scales)
        if found.verdict == "pass":
            confirmed = found
            break
    if confirmed is not None:
        known.head["written"] = str(out)
        known.head["chosen"] = confirmed.scales.label
        known.write()
        _write(sides, confirmed.scales, out, known.path)
    code = _exit_code(bench.trials, confirmed)
    known.head["exit_code"] = code
    known.write()
    emit(known.path.read_text(encoding="utf-8") if settings.json else _table(bench.trials, settings.score))
    _say_end(bench.trials, confirmed, out, code)
    say(f"what was tried: {known.path}")
    return code


def rules_of(settings: Settings) -> list[Rule]:
    """Return the limits."""
    from selfaug.report.gate import parse_rule

    return [
        *(parse_rule("max-drop", text) for text in settings.max_drop),
        *(parse_rule("min-gain", text) for text in settings.min_gain),
    ]


def check_settings(settings: Settings) -> None:
    """Check options before anything is read."""
    from selfaug.common.statistics import LOOKS

    if not settings.max_drop:
        raise ConfigError("no limit is given that a smaller update would keep", "pass --max-drop general=2pt, say.")
    if settings.no_task:
        raise ConfigError(
            "no_task leaves nothing to keep the most of: the smallest scale forgets least",
            "pass --data with records of the task, or choose a factor yourself: `selfaug train --method wise-ft`.",
        )
    if settings.backend != "hf":
        raise ConfigError(
            f"backend is {settings.backend}, and all scales share one loaded model", "leave --backend out."
        )
    if settings.looks not in LOOKS:
        raise ConfigError(f"looks is {settings.looks}", f"give {min(LOOKS)} to {max(LOOKS)}.")
    wrong = [scale for scale in settings.scales if not 0 < scale <= 1]
    if wrong or not settings.scales:
        raise ConfigError(
            f"scales are {settings.scales}: {f'{wrong[0]:g} is out of range' if wrong else 'none is given'}",
            "give numbers above 0 (the base, which gains nothing) and up to 1 (the update as it was trained).",
        )
    for knob in settings.knobs:
        if knob not in KNOBS:
            raise ConfigError(f"knobs: {knob!r} is not known.{nearest(knob, KNOBS)}", f"choose of {', '.join(KNOBS)}.")
    if "uniform" not in settings.knobs:
        raise ConfigError(
            f"knobs are {' '.join(settings.knobs)}, and all others begin at the best uniform scale",
            "pass --knobs uniform, with groups and intruders behind it where they are wanted.",
        )
    evaluate.check_settings(settings)


def _open_adapter(settings: Settings) -> Path | None:
    """Let ``run`` name an adapter, too, and return the output folder, which is not that of the measurements."""
    from selfaug.lab import shipped
    from selfaug.run.folder import ADAPTER_CONFIG
    from selfaug.run.model_source import looks_local

    if settings.base is not None:
        settings.base = shipped.resolve(settings.base)
    if settings.run is not None and settings.adapter is None:
        folder = Path(settings.run).expanduser()
        if (folder / ADAPTER_CONFIG).is_file() or not looks_local(settings.run):
            settings.run, settings.adapter = None, settings.run
    out, settings.output_dir = settings.output_dir, None
    return None if out is None else Path(out).expanduser()


def _check_output(out: Path, folder: RunFolder, origin: Origin, *, overwrite: bool) -> None:
    from selfaug.run.folder import ADAPTER_CONFIG

    own = (folder.path.resolve(), origin.final.resolve())
    if any(one == out.resolve() or one.is_relative_to(out.resolve()) for one in own):
        raise ConfigError(f"output_dir {out} holds the adapter that is scaled", "name another folder.")
    ours = [path.name for path in out.iterdir()] if (out / SCALE).is_file() and (out / ADAPTER_CONFIG).is_file() else []
    check_free(out, ours=ours, overwrite=overwrite)


def _group(part: Part) -> str:
    from selfaug.evaluation.task_part import TaskPart

    return "task" if isinstance(part, TaskPart) else "general"


def _say_items(batches: dict[str, Batches], looks: int, settings: Settings) -> None:
    items = ", ".join(f"{name} {one.counts[0]} + {one.counts[1]}" for name, one in batches.items())
    fewer = f" (fewer than {settings.looks}: a part has few items)" if looks < settings.looks else ""
    say(f"items to choose and to confirm: {items}; {looks} look{'s' * (looks != 1)} at the first{fewer}.")


def _most_trials(settings: Settings, grid: Sequence[float]) -> int:
    knobs = 2 * ("groups" in settings.knobs) + 2 * ("intruders" in settings.knobs)
    return min(len(grid), 2 + math.ceil(math.log2(len(grid) + 1))) + knobs + 2


def _measured(
    sides: Sides, store: Store, settings: Settings, parts: Sequence[Part], scales: Scales
) -> Iterator[tuple[str, Measured]]:
    from selfaug.evaluation.run import evaluate as measure
    from selfaug.scaling.items import Measured
    from selfaug.scaling.scales import changed

    tuned = scales.weights_hash(sides.origin.tuned_hash)
    with sides.changed(tuned, lambda model: changed(model, scales)):
        bar = lambda what, total: counting(f"scale {scales.label}: {what}", total)  # noqa: E731
        for name, entry, samples in measure(parts, sides, store, seed=settings.seed, bar=bar, say=lambda line: None):
            yield name, Measured(entry, samples)


def _other_knobs(
    settings: Settings,
    bench: Bench,
    best: Trial,
    grid: Sequence[float],
    sides: Sides,
    store: Store,
    modules: Sequence[str],
    folder: RunFolder,
    known: _Known,
) -> None:
    """Try what is not one factor for all modules, where one factor below the largest keeps the limits."""
    from selfaug.cli.encoding import load_tokenizer
    from selfaug.common.store import key_of
    from selfaug.scaling.groups import grouped
    from selfaug.scaling.probes import Probes
    from selfaug.scaling.scales import intruders_matter
    from selfaug.scaling.search import INTRUDERS, by_groups, without_intruders

    if best.scales.uniform == grid[0]:
        say(f"a scale of {grid[0]:g} keeps the limits, so nothing else is tried.")
        return
    if "groups" in settings.knobs:
        tokenizer = load_tokenizer(folder.tokenizer, trust_remote_code=sides.origin.trust_remote_code)
        probes = Probes.of(sides, store, bench.batches, bench.first, tokenizer, settings.batch_size)
        groups = grouped(modules, _GROUPS)
        if not probes.texts or not probes.rows or len(groups) < 2:
            say("groups are not compared: there are no general texts or answers to compare them by, or no two groups.")
        else:
            with counting("groups of modules", len(groups)) as progress:
                weighed = probes.weigh(groups, best.scales, progress)
            known.head["groups"] = [asdict(one) for one in weighed]
            by_groups(bench, probes, weighed, best, grid)
    if "intruders" in settings.knobs:
        key = key_of({"adapter": sides.origin.tuned_hash, "base": sides.origin.base_hash, "factor": INTRUDERS})
        found = store.get("intruders", key)
        if found is None:
            seen: list[bool] = []

            def look(peft: Any) -> AbstractContextManager[None]:
                seen.append(intruders_matter(peft, INTRUDERS))
                return nullcontext()

            say("looking for singular directions that the base does not have ...")
            with sides.changed(sides.origin.tuned_hash, look), sides.side("tuned"):
                [found] = seen
            store.put("intruders", key, found)
        if found:
            without_intruders(bench, best, grid)
        else:
            say("no module has strong singular directions that its base lacks: there is nothing to shrink.")


class _Known:
    """What was tried, written after each trial.

    Args:
        path: File that it is written to.
        head: Facts before the trials.
        most: Largest number of trials.
    """

    def __init__(self, path: Path, head: dict[str, Any], most: int) -> None:
        self.path, self.head, self.most = path, head, most
        self._trials: list[Trial] = []

    def add(self, trial: Trial) -> None:
        """Keep a trial, and say how it went and how long the rest may take."""
        self._trials.append(trial)
        rest = max(0, self.most - len(self._trials))
        longest = max(one.seconds for one in self._trials)
        left = f"; at most {rest} more, {span(rest * longest)}" if rest and trial.half == "choosing" else ""
        say(f"scale {trial.scales.label}, {trial.half}: {_outcome(trial)}{left}")
        self.write()

    def write(self) -> None:
        """Write the file."""
        from selfaug.common.store import write_whole

        body = {**self.head, "tried": [one.as_json() for one in self._trials]}
        write_whole(self.path, json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _outcome(trial: Trial) -> str:
    return "; ".join(f"{one.rule} {one.verdict}, {' ('.join(_gain(one))})" for one in trial.checks)


def _gain(check: Check) -> tuple[str, str]:
    """Return the gain that a limit was checked on, and its bounds."""
    from selfaug.report.numbers import format_metric

    gain = check.gain
    ends = [None if end is None else format_metric(end, gain.unit, signed=True) for end in (gain.low, gain.high)]
    bounds = "no interval" if None in ends else f"{ends[0]} to {ends[1]}"
    return format_metric(gain.value, gain.unit, signed=True), bounds


def _head(
    settings: Settings,
    rules: Sequence[Rule],
    origin: Origin,
    batches: dict[str, Batches],
    looks: int,
    argv: Sequence[str],
) -> dict[str, Any]:
    from selfaug.common.fingerprint import versions
    from selfaug.common.redaction import redacted, without_secrets
    from selfaug.run.manifest import device

    return {
        "schema": 1,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": without_secrets(["selfaug", "scale", *argv]),
        "config": redacted(asdict(settings)),
        "limits": [str(rule) for rule in rules],
        "looks": looks,
        "items": {
            name: dict(zip(("choosing", "confirming"), one.counts, strict=True)) for name, one in batches.items()
        },
        "hashes": {"base": origin.base_hash, "adapter": origin.tuned_hash},
        "versions": versions("lm_eval"),
        "device": device(),
        "chosen": None,
    }


def _write(sides: Sides, scales: Scales, out: Path, tried: Path) -> None:
    """Write the adapter, and check as it is read back that it acts as the one that was measured."""
    from selfaug.cli.outputs import open_to_others
    from selfaug.run.fit import probed
    from selfaug.scaling.scales import changed, write_adapter

    origin = sides.origin
    with written_whole(out) as folder:
        tuned = scales.weights_hash(origin.tuned_hash)
        with sides.changed(tuned, lambda peft: changed(peft, scales)), sides.side("tuned") as model:
            wanted = probed(model)
            write_adapter(model, origin.final, scales, folder)
        sides.move(origin.at(folder))
        with sides.side("tuned") as model:
            distance = float((probed(model) - wanted).abs().max())
        # As for an adapter switched off: the same sums, in another order.
        tolerance = (0.02 if model.dtype.itemsize == 2 else 1e-4) * float(wanted.abs().max())
        if not distance <= tolerance:
            raise AssertionError(f"the adapter as read back is not the one measured: logits differ by {distance:.3g}")
        shutil.copyfile(tried, folder / SCALE)
        open_to_others(folder)


def _exit_code(trials: Sequence[Trial], confirmed: Trial | None) -> int:
    """Return the gate's code: of the confirmations, or else of the smallest scale."""
    from selfaug.cli.gate import EXIT_CODES

    if confirmed is not None:
        return EXIT_CODES["pass"]
    confirmations = [one for one in trials if one.half == "confirming"]
    last = confirmations or [min(trials, key=lambda one: one.scales.mean)]
    return EXIT_CODES["fail" if all(one.verdict == "fail" for one in last) else "undecided"]


def _say_end(trials: Sequence[Trial], confirmed: Trial | None, out: Path, code: int) -> None:
    if confirmed is not None:
        say(f"scale {confirmed.scales.label} keeps the limits with the most of the task that was found: {out}")
        return
    last = min(trials, key=lambda one: one.scales.mean)
    reasons = [f"{one.rule}: {one.reason}" for one in last.checks if one.verdict != "pass"]
    tried = [one for one in trials if one.half == "confirming"]
    if tried:
        reasons = [f"{one.rule}: {one.reason}" for trial in tried for one in trial.checks if one.verdict != "pass"]
    what = "no scale keeps the limits" if code == 1 else "no scale surely keeps the limits"
    say(f"{what}, and no adapter was written. {'; '.join(dict.fromkeys(reasons))}.")


def _table(trials: Sequence[Trial], score: str) -> str:
    from selfaug.shift.table import columns

    rows = [
        (one.scales.label, one.half, check.verdict, str(check.rule), check.subject, *_gain(check), str(check.gain.n),
         "-" if one.score is None else f"{one.score:+.4f}")
        for one in trials
        for check in one.checks
    ]  # fmt: skip
    head = ("scale", "half", "verdict", "limit", "measured", "gain", "between", "items", f"gain of {score}")
    return columns(head, rows, 5)
