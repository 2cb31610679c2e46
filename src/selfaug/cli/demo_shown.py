"""The output of `selfaug demo`: a table of what its two runs gained and lost, and a few answers.

Everything is read from the run folders, as `selfaug report` does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfaug.common.statistics import difference
from selfaug.evaluation.results import items_of, primary, read_results, read_samples
from selfaug.report.training import read_log
from selfaug.run.folder import RunFolder

__all__ = ["Line", "Score", "answers_text", "drift_text", "lines", "table_text"]

_WIDTH = 76
_RIGHT = ("acc", "prompt_level_strict_acc")
"""Metrics that say whether an answer to a general item is right, by the task's."""


@dataclass(frozen=True)
class Score:
    """A share of correct answers, from 0 to 1, its change from the base, and the 95 % interval of the change."""

    value: float
    change: float
    interval: tuple[float, float] | None

    def __str__(self) -> str:
        between = ""
        if self.interval is not None:
            between = f" [{100 * self.interval[0]:+z.0f}, {100 * self.interval[1]:+z.0f}]"
        return f"{100 * self.value:.0f} ({100 * self.change:+z.0f}{between})"


@dataclass(frozen=True)
class Line:
    """One row of the table: the score of the base, and that of each run by its name."""

    name: str
    base: float
    runs: Mapping[str, Score]
    group: str


def lines(runs: Mapping[str, Path], documents: int) -> list[Line]:
    """Return the rows of the table: the task, each general skill, and the mean of the skills."""
    results = {name: read_results(RunFolder(path).results) for name, path in runs.items()}
    scored = []
    for group in ("task", "general"):
        first, *_ = results.values()
        for part, (metric, _) in primary(first, group).items():
            entries = {name: primary(each, group)[part][1] for name, each in results.items()}
            base = next(iter(entries.values()))["base"]["value"]
            scores = {name: _score(entry["tuned"]["value"], entry["difference"]) for name, entry in entries.items()}
            skill = part.rpartition(":")[2].removeprefix("lab_")
            name = f"RAG task, {documents} documents ({metric})" if group == "task" else skill
            scored.append(Line(name, base, scores, group))
    if sum(line.group == "general" for line in scored) == 1:
        return scored
    means = {name: _general_mean(list(read_samples(RunFolder(path).samples))) for name, path in runs.items()}
    base = next(iter(means.values()))[0]
    return [*scored, Line("general, mean", base, {name: score for name, (_, score) in means.items()}, "mean")]


def drift_text(runs: Mapping[str, Path]) -> str | None:
    """Return how far each run went from the base on the base's own answers; ``None`` without a probe."""
    found = []
    for name, path in runs.items():
        probed = [event for event in read_log(RunFolder(path).log) if "probe_kl" in event]
        if not probed:
            return None
        last = probed[-1]
        found.append(f"{name} {last['probe_kl']:.3f} [{last['probe_kl_low']:.3f}, {last['probe_kl_high']:.3f}]")
    return f"KL(base ‖ tuned) on the base's own answers to general prompts, nats a token: {', '.join(found)}"


def table_text(measured: Sequence[Line]) -> str:
    """Return the table of scores in percent, with the changes' 95 % intervals."""
    rows: list[Sequence[str]] = [("", "base", *measured[0].runs)]
    for line in measured:
        name = f"  {line.name}" if line.group == "general" else line.name
        rows.append((name, f"{100 * line.base:.0f}", *map(str, line.runs.values())))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    padded = [
        [c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))] for row in rows
    ]
    return "\n".join("   ".join(row).rstrip() for row in padded)


def _score(value: float, change: Mapping[str, Any]) -> Score:
    return Score(value, change["value"], tuple(change["interval"]) if change["interval"] else None)


def _general_mean(samples: Sequence[Mapping[str, Any]]) -> tuple[float, Score]:
    """Return the scores of base and run on all general items; each skill has equally many."""
    general = [sample for sample in samples if sample["part"].startswith("general:")]
    base, tuned = items_of(general, _metric(general[0]["base"]))
    change = difference([(base, tuned)], shared_items=True)
    assert change is not None
    value = sum(_right(sample["base"]) for sample in general) / len(general)
    return value, Score(value + change.value, change.value, change.interval)


def _metric(side: Mapping[str, Any]) -> str:
    return next(name for name in _RIGHT if name in side["values"])


def _right(side: Mapping[str, Any]) -> float:
    return float(side["values"][_metric(side)])


def answers_text(runs: Mapping[str, Path]) -> str:
    """Return up to three prompts with the answers of all models.

    They are the first item of the task, and of each of the two skills that the first run lost most (of a single one
    two) the first item that the base passes and the run fails.
    """
    samples = {
        name: {(s["part"], s["id"]): s for s in read_samples(RunFolder(path).samples)} for name, path in runs.items()
    }
    first, *_ = samples.values()
    losses: dict[str, float] = {}
    lost: dict[str, list[tuple[str, str]]] = {}
    for key, sample in first.items():
        if key[0].startswith("general:"):
            less = _right(sample["base"]) - _right(sample["tuned"])
            losses[key[0]] = losses.get(key[0], 0.0) + less
            if less > 0:
                lost.setdefault(key[0], []).append(key)
    worst = sorted(losses, key=lambda name: -losses[name])[:2]
    shown = [next(key for key in first if key[0] == "task")]
    shown += [key for part in worst for key in lost.get(part, [])[: 3 - len(worst)]]
    blocks = []
    for key in shown:
        sample = first[key]
        lines = [f"{key[0].rpartition(':')[2].removeprefix('lab_')}: {_asked(sample)}"]
        lines.append(f"  {'base':<8} {_one_line(sample['base']['response'])}")
        lines += [f"  {name:<8} {_one_line(found[key]['tuned']['response'])}" for name, found in samples.items()]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _asked(sample: Mapping[str, Any]) -> str:
    text = str(sample.get("question") or sample["prompt"])  # general tasks have only prompts
    text = re.sub(r"^<\|im_start\|>system.*?<\|im_end\|>\s*", "", text, flags=re.DOTALL)
    return _one_line(text.replace("<|im_start|>", "").replace("<|im_end|>", ""), 2 * _WIDTH)


def _one_line(text: str, width: int = _WIDTH) -> str:
    line = " / ".join(part for part in text.strip().split("\n") if part)
    return line if len(line) <= width else f"{line[: width - 1]}…"
