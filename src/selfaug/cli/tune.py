"""`selfaug tune`: finds learning rate, alignment and scale that keep limits on forgetting with the most of the task.

Many short runs, then fewer and longer ones: those go on that learnt most of the task for the shift that they made. The
last one is scaled down until the limits are kept (`selfaug scale`), on general items that no run has seen. All runs
together take `--budget_steps` optimiser steps. Exit codes are those of `gate`. Killed and called again, it goes on.
Flags that `tune` does not know are flags of `selfaug train`, the same for all runs.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.cli.compare import train_words
from selfaug.cli.compare_study import Measuring, check_measured, check_run, devices_of, measuring_words
from selfaug.cli.config import Call, Command, read
from selfaug.cli.outputs import check_free, check_writable
from selfaug.common.errors import ConfigError, UserError
from selfaug.common.options import REQUIRED, option
from selfaug.common.terminal import emit, say
from selfaug.run.folder import SCALE

if TYPE_CHECKING:
    from selfaug.cli import scale
    from selfaug.cli.parsing import Settings as Trained
    from selfaug.study.ladder import Candidate, Found, Rung

__all__ = ["COMMAND", "Settings", "run"]

TRIED = "tune.json"
_OWN = (
    "method", "preset", "alpha", "align_target", "output_dir", "max_steps", "num_train_epochs", "eval_strategy",
    "eval_steps", "eval_on_start", "probe_limit",
)  # fmt: skip
_ALLOWED = 0.05
_HELD_OUT, _PROBE = "0.1", "general"


@dataclass
class _Tuning:
    """What it adds to the settings of measuring."""

    output_dir: str = option(REQUIRED, "Folder of all runs and of the adapter.", group="Tuning", metavar="FOLDER")
    max_drop: list[str] = option(
        [], "Largest loss allowed, such as general=2pt; NAME and LIMIT as for `selfaug gate`.", metavar="NAME=LIMIT",
        repeated=True,
    )  # fmt: skip
    min_gain: list[str] = option([], "Smallest gain required, such as task=0.", metavar="NAME=LIMIT", repeated=True)
    score: str = option("task", "Group, part or PART:METRIC to keep the most of.", metavar="NAME")
    budget_steps: int = option(900, "Optimiser steps of all runs together; the last run has its share.")
    rates: list[float] | None = option(
        None, "Learning rates to try.", metavar="RATE", shown="1, 10 and 100 times learning_rate"
    )
    alphas: list[float] = option([2.0, 0.5, 8.0], "Weights of the alignment to try.", metavar="ALPHA")
    allowed_shift: float | None = option(
        None,
        "Shift on the probe's answers, in nats a token, up to which a run is not marked down.",
        metavar="NATS",
        shown=f"the smallest limit on texts in nats, or {_ALLOWED}",
    )
    processes: int | None = option(None, "Number of runs at a time; on GPUs each has one.", shown="one a GPU, or 1")


@dataclass
class Settings(Measuring, _Tuning):
    """Settings of `selfaug tune`."""


COMMAND = Command(
    "tune",
    Settings,
    __doc__ or "",
    (
        "selfaug tune --output_dir tuned --max_drop general=2pt --general quick --data held_out.jsonl "
        "--model_name_or_path Qwen/Qwen3-0.6B --dataset_name train.jsonl",
        "selfaug tune --output_dir tuned --max_drop text:news=0.05 --general_data news.txt --score task:answer_nll "
        "--budget_steps 300 --rates 1e-4 1e-3 --model_name_or_path lab --dataset_name train.jsonl",
    ),
    takes_others=True,
)


def run(call: Call[Settings]) -> int:
    """Check everything, train round by round, scale the last run, show what was tried, and return the exit code."""
    settings = call.settings
    _check(settings)
    words, seed, rates = _train(settings, train_words(call))
    from selfaug.study.ladder import Rung, best, candidates, rungs
    from selfaug.study.run import folder_of, run_all

    folder = Path(settings.output_dir).expanduser().resolve()
    check_writable(folder)
    devices = devices_of(settings.processes)
    left = candidates(rates, settings.alphas)
    plan = rungs(len(left), settings.budget_steps)
    first = Rung(left, plan[0][1], words, seed)
    facts: dict[str, Any] = {}
    trained = [check_run(one, facts) for one in first.runs()]
    allowed = _check_scaling(settings, folder / "adapter", trained[0])
    folder.mkdir(parents=True, exist_ok=True)
    say(f"runs x steps: {', '.join(f'{count} x {steps}' for count, steps in plan)}; their logs: runs/*/study.log")
    tried = _Tried(folder / TRIED, settings, call.argv, allowed)
    for (_, steps), (count, _) in zip(plan, [*plan[1:], (1, 0)], strict=True):
        rung = Rung(left, steps, words, seed)
        failures = run_all(rung, folder, devices=devices, say=say)
        found = _found(rung, folder)
        if not found:
            why = failures[0].says if failures else "no finite NLL of the validation rows, or shift of the probe"
            raise UserError(f"no run of {steps} steps ended as it should: {why}", "mend the cause, and call again.")
        left = best(found, count, allowed)
        tried.add(rung, found, left)
    last = folder_of(folder, rung.run(left[0]))
    emit(tried.table())
    say(f"learning rate {left[0].rate:g} and alpha {left[0].alpha:g} go into the scaling: {last}")
    code = _scaled(settings, last, folder / "adapter")
    tried.end(last, folder / "adapter", code)
    say(f"what was tried: {tried.path}")
    return code


def _check(settings: Settings) -> None:
    """Check options before anything is read."""
    if not settings.max_drop:
        raise ConfigError("no limit on forgetting is given that a run could keep", "pass --max_drop general=2pt, say.")
    if not settings.general and not settings.general_data:
        raise ConfigError("nothing general is measured, and limits are about it", "pass --general or --general_data.")
    for name in ("rates", "alphas"):
        values = getattr(settings, name)
        wrong = [] if values is None else [value for value in values if not 0 < value < float("inf")]
        if wrong or values == []:
            raise ConfigError(f"{name} are {values}: {wrong[0] if wrong else 'none is given'}", "give numbers above 0.")
    if settings.allowed_shift is not None and not settings.allowed_shift > 0:
        raise ConfigError(f"allowed_shift={settings.allowed_shift} is no shift", "give nats a token, such as 0.05.")


def _check_scaling(settings: Settings, adapter: Path, trained: Trained) -> float:
    """Check what the scaling would refuse only after the training, and return the shift that costs no score."""
    from selfaug.cli import scale
    from selfaug.cli.evaluate_parts import planned
    from selfaug.cli.rehearsal import adapter_settings
    from selfaug.report.gate import concerns
    from selfaug.scaling.scales import check_lora
    from selfaug.scaling.search import check_rules

    if not (adapter / SCALE).is_file():
        check_free(adapter, ours=(), overwrite=False)
    scaling = _scaling(settings, Path("run"), adapter).settings
    scale.check_settings(scaling)
    rules = scale.rules_of(scaling)
    config = adapter_settings(trained.model)
    if config is None:
        raise ConfigError(
            "use_peft=false trains whole models, and only the update of a LoRA can be scaled", "leave --use_peft out."
        )
    check_lora(config, "the adapter")
    parts = planned(scaling, trained.resolved)
    check_rules(rules, settings.score, parts)
    texts = {part: about for part, about in parts.items() if part.startswith("text:")}
    in_nats = [
        float(rule.limit)
        for rule in rules
        if rule.kind == "max-drop" and not rule.scale and rule.limit > 0
        and any(concerns(rule, part, *about) for part, about in texts.items())
    ]  # fmt: skip
    return settings.allowed_shift or min(in_nats, default=_ALLOWED)


def _train(settings: Settings, words: Sequence[str]) -> tuple[tuple[str, ...], int, list[float]]:
    """Return the arguments of `selfaug train` that all runs share, their seed, and the learning rates."""
    from selfaug.cli.compare_study import absolute
    from selfaug.cli.parsing import parse

    arguments = parse([*words, "--output_dir", "unused"])
    values = arguments.values
    for name in _OWN:
        if name in arguments.given - {"output_dir"}:
            raise ConfigError(
                f"--{name} is what tuning chooses itself",
                "leave it out: --rates, --alphas and --budget_steps bound it.",
            )
    more = []
    if values["held_out"] is None and values["eval_dataset"] is None:
        more += ["--held_out", _HELD_OUT]
    if values["probe"] is None:
        more += ["--probe", _PROBE]
    rate = float(values["learning_rate"])
    rates = settings.rates or [float(f"{rate * factor:.3g}") for factor in (1, 10, 100)]
    check_measured(measuring_words(settings))
    return tuple(absolute([*words, *more])), int(values["seed"]), rates


def _found(rung: Rung, folder: Path) -> dict[Candidate, Found]:
    from selfaug.study.ladder import found_in
    from selfaug.study.run import folder_of, is_finished

    found = {}
    for one in rung.candidates:
        trained = rung.run(one)
        measured = found_in(folder_of(folder, trained)) if is_finished(folder, rung, trained) else None
        if measured is not None:
            found[one] = measured
    return found


def _scaling(settings: Settings, run: Path, adapter: Path) -> Call[scale.Settings]:
    """Return the call of `selfaug scale` for a run."""
    from selfaug.cli import scale

    words = [str(run), "--output_dir", str(adapter), "--score", settings.score]
    for flag, limits in (("--max_drop", settings.max_drop), ("--min_gain", settings.min_gain)):
        words += [word for limit in limits for word in (flag, limit)]
    return read(scale.COMMAND, [*words, *measuring_words(settings)])


def _scaled(settings: Settings, run: Path, adapter: Path) -> int:
    """Scale a run until it keeps the limits, and return the exit code."""
    from selfaug.cli import scale

    if (adapter / SCALE).is_file():
        shutil.rmtree(adapter)  # of an earlier call, whose limits may have been others
    return scale.run(_scaling(settings, run, adapter))


class _Tried:
    """What was tried, written after each round.

    Args:
        path: File that it is written to.
        settings: Settings of the call.
        argv: Words of the call.
        allowed: Shift that costs no score.
    """

    def __init__(self, path: Path, settings: Settings, argv: Sequence[str], allowed: float) -> None:
        from selfaug.common.fingerprint import versions
        from selfaug.common.redaction import redacted, without_secrets
        from selfaug.run.manifest import device

        self.path, self._allowed = path, allowed
        self._rows: list[dict[str, Any]] = []
        self._head: dict[str, Any] = {
            "schema": 1,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": without_secrets(["selfaug", "tune", *argv]),
            "config": redacted(asdict(settings)),
            "allowed_shift": allowed,
            "versions": versions(),
            "device": device(),
        }

    def add(self, rung: Rung, found: Mapping[Candidate, Found], kept: Sequence[Candidate]) -> None:
        """Add a round, with the candidates that go on."""
        for one in rung.candidates:
            row: dict[str, Any] = {
                "run": rung.run(one).name, "steps": rung.steps, "learning_rate": one.rate, "alpha": one.alpha,
                "goes_on": one in kept,
            }  # fmt: skip
            if one in found:
                row |= asdict(found[one]) | {"score": found[one].score(self._allowed)}
            self._rows.append(row)
        self._write()

    def end(self, run: Path, adapter: Path, code: int) -> None:
        """Add how the scaling ended: with exit code 0 the adapter is in its folder, with its ``scale.json``."""
        self._head |= {"chosen": run.name, "adapter": str(adapter) if code == 0 else None, "exit_code": code}
        self._write()

    def table(self) -> str:
        """Return the rounds as a table."""
        from selfaug.shift.table import columns

        rows = []
        for row in self._rows:
            numbers = ("-",) * 4
            if "score" in row:
                numbers = (f"{row['after']:.3f}", f"{row['before'] - row['after']:+.3f}", f"{row['shift']:.4f}",
                           f"{row['score']:+.3f}")  # fmt: skip
            said = "failed" if "score" not in row else "yes" if row["goes_on"] else "no"
            rows.append((f"{row['steps']}", f"{row['learning_rate']:g}", f"{row['alpha']:g}", *numbers, said))
        head = ("steps", "learning rate", "alpha", "validation NLL", "gain", "shift of the probe", "score", "goes on")
        return columns(head, rows, 0)

    def _write(self) -> None:
        from selfaug.common.store import write_whole

        steps = sum(row["steps"] for row in self._rows)
        body = {**self._head, "steps": steps, "tried": self._rows}
        write_whole(self.path, json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
