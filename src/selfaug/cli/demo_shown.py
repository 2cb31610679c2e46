"""The output of `selfaug demo`: a table of what its two runs gained and lost, and a few answers.

Everything is read from the run folders, as `selfaug report` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfaug.common.statistics import difference
from selfaug.evaluation.results import items_of, primary, read_results, read_samples
from selfaug.run.folder import RunFolder

__all__ = ["Line", "Score", "answers_text", "lines", "table_text"]

_WIDTH = 76


@dataclass(frozen=True)
class Score:
    """A share of items answered rightly, from 0 to 1: what it changed by, and the 95 % interval of the change."""

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
    """One thing that was measured: of the base, and of each run by its name."""

    name: str
    base: float
    runs: Mapping[str, Score]
    group: str


def lines(runs: Mapping[str, Path], documents: int) -> list[Line]:
    """The task, each general skill, and their mean."""
    results = {name: read_results(RunFolder(path).results) for name, path in runs.items()}
    found = []
    for group in ("task", "general"):
        first, *_ = results.values()
        for part, (metric, _) in primary(first, group).items():
            entries = {name: primary(each, group)[part][1] for name, each in results.items()}
            base = next(iter(entries.values()))["base"]["value"]
            scores = {name: _score(entry["tuned"]["value"], entry["difference"]) for name, entry in entries.items()}
            skill = part.rpartition(":")[2].removeprefix("lab_")
            name = f"RAG task, {documents} documents ({metric})" if group == "task" else skill
            found.append(Line(name, base, scores, group))
    means = {name: _general_mean(list(read_samples(RunFolder(path).samples))) for name, path in runs.items()}
    base = next(iter(means.values()))[0]
    return [*found, Line("general, mean", base, {name: score for name, (_, score) in means.items()}, "mean")]


def table_text(found: Sequence[Line]) -> str:
    """Score of the base and of each run, in percent; changes with their 95 % intervals."""
    rows: list[Sequence[str]] = [("", "base", *found[0].runs)]
    for line in found:
        name = f"  {line.name}" if line.group == "general" else line.name
        rows.append((name, f"{100 * line.base:.0f}", *map(str, line.runs.values())))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    padded = [
        [c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))] for row in rows
    ]
    return "\n".join("   ".join(row).rstrip() for row in padded)


def _score(value: float, apart: Mapping[str, Any]) -> Score:
    return Score(value, apart["value"], tuple(apart["interval"]) if apart["interval"] else None)


def _general_mean(samples: Sequence[Mapping[str, Any]]) -> tuple[float, Score]:
    """Of all general items: the base's score, and the run's. Each skill has as many items."""
    general = [sample for sample in samples if sample["part"].startswith("general:")]
    base, tuned = items_of(general, "acc")
    found = difference([(base, tuned)], shared_items=True)
    assert found is not None
    value = sum(sample["base"]["values"]["acc"] for sample in general) / len(general)
    return value, Score(value + found.value, found.value, found.interval)


def answers_text(runs: Mapping[str, Path]) -> str:
    """Three prompts with the answers of all models: the task's first, and the first that the base passes and the first
    run fails of the two skills which that run lost most.
    """
    samples = {
        name: {(s["part"], s["id"]): s for s in read_samples(RunFolder(path).samples)} for name, path in runs.items()
    }
    first, *_ = samples.values()
    losses: dict[str, float] = {}
    for sample in first.values():
        if sample["part"].startswith("general:"):
            lost = sample["base"]["values"]["acc"] - sample["tuned"]["values"]["acc"]
            losses[sample["part"]] = losses.get(sample["part"], 0.0) + lost
    shown = [next(key for key in first if key[0] == "task")]
    for part in sorted(losses, key=lambda name: -losses[name])[:2]:
        lost = [
            key for key, s in first.items()
            if key[0] == part and s["base"]["values"]["acc"] > s["tuned"]["values"]["acc"]
        ]  # fmt: skip
        shown += lost[:1]
    blocks = []
    for key in shown:
        sample = first[key]
        lines = [f"{key[0].rpartition(':')[2].removeprefix('lab_')}: {_asked(sample)}"]
        lines.append(f"  {'base':<8} {_one_line(sample['base']['response'])}")
        lines += [f"  {name:<8} {_one_line(found[key]['tuned']['response'])}" for name, found in samples.items()]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _asked(sample: Mapping[str, Any]) -> str:
    text = str(sample.get("question") or sample["prompt"])  # general tasks have prompts alone
    return _one_line(text.replace("<|im_start|>", "").replace("<|im_end|>", ""), 2 * _WIDTH)


def _one_line(text: str, width: int = _WIDTH) -> str:
    line = " / ".join(part for part in text.strip().split("\n") if part)
    return line if len(line) <= width else f"{line[: width - 1]}…"
