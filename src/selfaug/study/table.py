"""How is a comparison told in text? Markdown that reads well in a terminal too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["markdown"]


def markdown(found: Mapping[str, Any]) -> str:
    """The curves, the points and the sentence."""
    blocks = [
        f"Base: task {found['base']['task']:.4g}, general {found['base']['general']:.4g}. "
        f"LoRA ({found['lora']['setting']}): task {found['lora']['task']:.4g}, general {found['lora']['general']:.4g}."
    ]
    if found["curves"]:
        rows = [
            (c["curve"], str(c["settings"]), _with(c["hypervolume"], c["hypervolume_interval"]), c["chosen"])
            for c in found["curves"]
        ]
        blocks.append(_table(("method", "settings", "hypervolume", "chosen on the other half"), rows))
        points = [
            (p["setting"], str(p["seeds"]), _with(p["task"], p["task_interval"]),
             _with(p["retention"], p["retention_interval"]), f"{p['task_raw']:.4g}", f"{p['general_raw']:.4g}",
             "front" if p.get("front") else "") for p in found["points"]
        ]  # fmt: skip
        blocks.append(_table(("setting", "seeds", "task, scaled", "retention", "task", "general", ""), points))
        blocks.append(
            "Scaled: the base is 0 and LoRA 1 on the task, LoRA 0 and the base 1 on retention; hypervolume over "
            f"(0, 0). 95 % intervals: {found['resamples']} draws of items, then of seeds."
        )
    else:
        short = [(p["setting"], f"{p['task_raw']:.4g}", f"{p['general_raw']:.4g}") for p in found["points"]]
        blocks.append(_table(("setting", "task", "general"), short))
    blocks.append(found["says"])
    blocks += [f"Failed: {text}" for text in found.get("failed", ())]
    return "\n\n".join(blocks) + "\n"


def _with(value: float, interval: Sequence[float] | None) -> str:
    return f"{value:.2f}" if interval is None else f"{value:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rows = list(rows)
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(f"| {' | '.join(cell.ljust(w) for cell, w in zip(line, widths, strict=True))} |" for line in lines)
