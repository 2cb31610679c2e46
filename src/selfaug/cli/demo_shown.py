"""What does `selfaug demo` show of its two runs? A table of what was gained and lost, and a few answers.

Everything is read from the run folders, as `selfaug report` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfaug.evaluation.results import items_of, primary, read_results, read_samples
from selfaug.evaluation.statistics import difference

__all__ = ["answers_text", "table_text"]

_WIDTH = 76


def table_text(runs: Mapping[str, Path], documents: int) -> str:
    """Score of the base and of each run, part by part, in percent; changes with their 95 % intervals."""
    results = {name: read_results(path / "results.json") for name, path in runs.items()}
    samples = {name: list(read_samples(path / "samples.jsonl")) for name, path in runs.items()}
    rows: list[Sequence[str]] = [("", "base", *(f"{name}" for name in runs))]
    for group, label in (("task", f"RAG task, {documents} documents"), ("general", "")):
        first, *_ = results.values()
        for part, (metric, _) in primary(first, group).items():
            entries = [primary(found, group)[part][1] for found in results.values()]
            name = label or part.rpartition(":")[2].removeprefix("lab_")
            cells = [_cell(entry["tuned"]["value"], entry["difference"]) for entry in entries]
            rows.append(
                (f"{name} ({metric})" if group == "task" else f"  {name}", _percent(entries[0]["base"]), *cells)
            )
    means = [_general_mean(found) for found in samples.values()]
    base = next(iter(means))[0]
    rows.append(("general, mean", f"{100 * base:.0f}", *(_cell(base + found[1], _as_entry(found)) for found in means)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    padded = [
        [c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))] for row in rows
    ]
    return "\n".join("   ".join(row).rstrip() for row in padded)


def _percent(side: Mapping[str, Any]) -> str:
    return f"{100 * side['value']:.0f}"


def _cell(value: float, apart: Mapping[str, Any]) -> str:
    interval = apart["interval"]
    between = "" if interval is None else f" [{100 * interval[0]:+z.0f}, {100 * interval[1]:+z.0f}]"
    return f"{100 * value:.0f} ({100 * apart['value']:+z.0f}{between})"


def _general_mean(samples: Sequence[Mapping[str, Any]]) -> tuple[float, float, tuple[float, float] | None]:
    """Of all general items: the base's score, the change, its interval. Each skill has as many items."""
    general = [sample for sample in samples if sample["part"].startswith("general:")]
    base, tuned = items_of(general, "acc")
    found = difference([(base, tuned)], shared_items=True)
    assert found is not None
    value = sum(sample["base"]["values"]["acc"] for sample in general) / len(general)
    return value, found.value, found.interval


def _as_entry(found: tuple[float, float, tuple[float, float] | None]) -> dict[str, Any]:
    return {"value": found[1], "interval": found[2]}


def answers_text(runs: Mapping[str, Path]) -> str:
    """Three prompts with the answers of all models: the task's first, and the first that the base passes and the first
    run fails of the two skills which that run lost most.
    """
    samples = {
        name: {(s["part"], s["id"]): s for s in read_samples(path / "samples.jsonl")} for name, path in runs.items()
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
