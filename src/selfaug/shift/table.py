"""The table of a shift measurement in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from selfaug.shift.regions import REGIONS
from selfaug.shift.tally import TOTALS

__all__ = ["columns", "shift_table"]

_HEAD = ("checkpoint", "region", "tokens", "KL(base‖tuned)", "±", "KL(tuned‖base)", "±", "base NLL", "tuned NLL")
_SHOWN_LAYERS = 12


def columns(head: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """Return a table aligned with spaces, with the first ``left`` columns aligned to the left."""
    table = [list(head), *map(list, rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    return "\n".join(
        "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in table
    )


def shift_table(shift: Mapping[str, Any]) -> str:
    """Return the regions of every checkpoint, then the layers of the last.

    Values are in nats per token, ± one standard error over texts.
    """
    rows: list[list[str]] = []
    for entry in shift["checkpoints"]:
        means = {**entry["regions"], **entry["totals"]}
        named = [name for name in (*REGIONS, *TOTALS) if name in means]
        rows += [[entry["name"], name, *_cells(means[name])] for name in named]
    parts = [columns(_HEAD, rows, 2)]
    last = shift["checkpoints"][-1]
    if last["layers"]:
        parts.append(_layers(last))
    return "\n\n".join(parts)


def _cells(entry: Mapping[str, Any]) -> list[str]:
    cells = [str(entry["tokens"])]
    for name in ("base_to_tuned", "tuned_to_base"):
        cells += [_number(entry[name]["value"]), _number(entry[name]["stderr"])]
    return [*cells, *(f"{entry[name]['value']:.4f}" for name in ("base_nll", "tuned_nll"))]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"


def _layers(entry: Mapping[str, Any]) -> str:
    """Return cosine and norm change over all positions; of many layers evenly spaced ones with the first and last."""
    layers = entry["layers"]
    count = min(len(layers), _SHOWN_LAYERS)
    places = sorted({round(i * (len(layers) - 1) / max(count - 1, 1)) for i in range(count)})
    regions = [region for region in ("data", "general_text") if region in layers[0]["regions"]]
    head = ["layer", *(f"{region} {what}" for region in regions for what in ("cosine", "norm change"))]
    rows = []
    for place in places:
        of = layers[place]["regions"]
        cells = [[f"{of[r]['cosine']['value']:.5f}", f"{of[r]['norm_change']['value']:+.5f}"] for r in regions]
        rows.append([str(layers[place]["layer"]), *(cell for pair in cells for cell in pair)])
    return columns(head, rows, 1)
