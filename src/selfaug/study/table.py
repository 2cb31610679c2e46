"""The tables of a study in Markdown, aligned for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["markdown"]


def markdown(summary: Mapping[str, Any]) -> str:
    """Return the ends of each world, the curves, the points and the sentence."""
    blocks = [_ends(world) for world in summary["worlds"]]
    if summary["curves"]:
        rows = [
            (c["curve"], str(c["settings"]), _with(c["hypervolume"], c["hypervolume_interval"]), c["chosen"])
            for c in summary["curves"]
        ]
        blocks.append(_table(("method", "settings", "hypervolume", "chosen on the other half"), rows))
    columns = [("setting", [p["setting"] for p in summary["points"]])]
    if summary["curves"]:
        columns += [
            ("seeds", [str(p["seeds"]) for p in summary["points"]]),
            ("task, scaled", [_scaled(p, "task") for p in summary["points"]]),
            ("retention", [_scaled(p, "retention") for p in summary["points"]]),
        ]
    columns += [(name, [f"{p[f'{name}_raw']:.4g}" for p in summary["points"]]) for name in ("task", "general")]
    if any("shift" in p for p in summary["points"]):
        columns.append(("shift", [_shift(p) for p in summary["points"]]))
    if summary["curves"]:
        columns.append(("", ["front" if p.get("front") else "" for p in summary["points"]]))
    heads, cells = zip(*columns, strict=True)
    blocks.append(_table(heads, list(zip(*cells, strict=True))))
    if summary["curves"]:
        blocks.append(
            "Scaled: the base is 0 and LoRA 1 on the task, LoRA 0 and the base 1 on retention; hypervolume over "
            f"(0, 0). 95 % intervals: {summary['worlds'][0]['resamples']} joint draws, items resampled and Student's t "
            "over seeds."
        )
    blocks += [_of(curve, _on_edge(curve)) for curve in summary["curves"] if curve["edge"]]
    if summary.get("other_losses") and any(world["task_unit"] == "nats/token" for world in summary["worlds"]):
        blocks.append(
            f"The task is measured in NLL, which {', '.join(summary['other_losses'])} do not minimise: where they "
            "learn less, the metric may be the cause."
        )
    if any("shift" in p for p in summary["points"]):
        blocks.append("Shift: KL(base ‖ tuned) at prompt positions, nats per token, mean over seeds.")
    blocks += [_of(world, world["says"]) for world in summary["worlds"]]
    blocks += [f"Failed: {text}" for text in summary.get("failed", ())]
    return "\n\n".join(blocks) + "\n"


def _ends(world: Mapping[str, Any]) -> str:
    base, lora = world["base"], world["lora"]
    return _of(
        world,
        f"Base: task {base['task']:.4g}, general {base['general']:.4g}. "
        f"LoRA ({lora['setting']}): task {lora['task']:.4g}, general {lora['general']:.4g}.",
    )


def _on_edge(curve: Mapping[str, Any]) -> str:
    return (
        f"On the edge of its strengths: {curve['curve']} is best at the {curve['edge']} that was tried, so its optimum "
        "may lie beyond (--widen N tries further ones)."
    )


def _of(world: Mapping[str, Any], text: str) -> str:
    return f"{world['world']}: {text}" if world["world"] else text


def _scaled(point: Mapping[str, Any], name: str) -> str:
    return _with(point[name], point[f"{name}_interval"]) if name in point else ""


def _shift(point: Mapping[str, Any]) -> str:
    each = point.get("shift")
    return f"{sum(each) / len(each):.4g}" if each else ""


def _with(value: float, interval: Sequence[float] | None) -> str:
    return f"{value:.2f}" if interval is None else f"{value:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rows = list(rows)
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(f"| {' | '.join(cell.ljust(w) for cell, w in zip(line, widths, strict=True))} |" for line in lines)
