"""Means per token with standard errors, by region, by position and by layer.

Shapes: M measures, P measured positions of one text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfaug.shift.regions import PROMPT_REGIONS, REGIONS

__all__ = ["MEASURES", "TOTALS", "Tally", "bin_of", "bin_range", "ratio_mean"]

Floats = NDArray[np.float64]

MEASURES = ("base_to_tuned", "tuned_to_base", "base_nll", "tuned_nll")
"""KL(base ‖ tuned), KL(tuned ‖ base), and both models' NLL of the next token, in nats per token."""

LAYER_MEASURES = ("cosine", "norm_change")

TOTALS: Mapping[str, tuple[str, ...]] = {
    "prompt": PROMPT_REGIONS,
    "data": tuple(region for region in REGIONS if region != "general_text"),
}
"""Totals over regions: ``prompt`` covers the aligned positions, ``data`` all positions of a record."""

_FIRST_BIN = 16


def bin_of(position: int) -> int:
    """Return the bin of a position (from 0): the first has 16 positions, each later one as many as all before it."""
    return (position // _FIRST_BIN).bit_length()


def bin_range(number: int) -> tuple[int, int]:
    """Return the first position of a bin, and the first of the next bin."""
    return (0 if number == 0 else _FIRST_BIN << (number - 1)), _FIRST_BIN << number


def ratio_mean(sums_S: Floats, counts_S: Floats) -> tuple[float, float | None]:
    """Return ``Σ sums / Σ counts`` and its standard error over texts (``None`` with fewer than two texts that count).

    Tokens of one text are not independent, so the text is the unit. With m the mean and n the number of texts,
    ``se² = n / (n - 1) · Σ (sum - m · count)² / (Σ count)²``, the linearised variance of a ratio.
    """
    kept = counts_S > 0
    sums_S, counts_S = sums_S[kept], counts_S[kept]
    total, texts = float(counts_S.sum()), len(counts_S)
    mean = float(sums_S.sum()) / total
    if texts < 2:
        return mean, None
    spread = float(((sums_S - mean * counts_S) ** 2).sum())
    return mean, (texts / (texts - 1) * spread) ** 0.5 / total


class Tally:
    """Accumulator of sums per text and region, from which all means are computed.

    Args:
        layers: Number of layers that are compared; 0 for none.
    """

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self._sums: list[Floats] = []  # per text, R x (M + 2 layers)
        self._counts: list[Floats] = []  # per text, R
        self._bins: dict[tuple[str, int], tuple[Floats, int]] = {}

    def add(self, regions: Sequence[str], values_MP: Floats, layers_LMP: Floats | None = None) -> None:
        """Add one text.

        Args:
            regions: Regions of its measured positions 0 to P - 1.
            values_MP: Measures of each position, in the order of ``MEASURES``.
            layers_LMP: Cosine and norm change of each layer and position, in the order of ``LAYER_MEASURES``; ``None``
                where no layers are compared.
        """
        rows = [values_MP] if layers_LMP is None else [values_MP, layers_LMP.reshape(-1, len(regions))]
        values = np.concatenate(rows).astype(np.float64)
        codes = np.array([REGIONS.index(region) for region in regions], dtype=np.int64)
        sums = np.zeros((len(REGIONS), len(values)))
        np.add.at(sums, codes, values.T)
        self._sums.append(sums)
        self._counts.append(np.bincount(codes, minlength=len(REGIONS)).astype(np.float64))
        kind = "general_text" if "general_text" in regions else "data"
        for number in range(bin_of(len(regions) - 1) + 1):
            first, last = bin_range(number)
            old, count = self._bins.get((kind, number), (np.zeros(len(MEASURES)), 0))
            part = values_MP[:, first:last]
            self._bins[kind, number] = (old + part.sum(axis=1), count + part.shape[1])

    def summary(self) -> dict[str, Any]:
        """Return ``regions``, ``totals``, ``positions`` and ``layers`` as JSON, without regions that have no token."""
        summary: dict[str, Any] = {"regions": {}, "totals": {}, "positions": {}, "layers": []}
        groups = {region: (region,) for region in REGIONS}
        for place, named in (("regions", groups), ("totals", TOTALS)):
            for name, members in named.items():
                entry = self._means(members, enumerate(MEASURES))
                if entry:
                    summary[place][name] = entry
        for (kind, number), (sums, count) in sorted(self._bins.items()):
            first, last = bin_range(number)
            means = {measure: float(total) / count for measure, total in zip(MEASURES, sums, strict=True)}
            summary["positions"].setdefault(kind, []).append({"from": first, "to": last, "tokens": count, **means})
        for layer in range(self.layers):
            first = len(MEASURES) + layer * len(LAYER_MEASURES)
            columns = list(enumerate(LAYER_MEASURES, start=first))
            means_of = {name: self._means(members, columns) for name, members in {**groups, **TOTALS}.items()}
            summary["layers"].append({"layer": layer + 1, "regions": {k: v for k, v in means_of.items() if v}})
        return summary

    def _means(self, members: Sequence[str], columns: Iterable[tuple[int, str]]) -> dict[str, Any]:
        codes = [REGIONS.index(member) for member in members]
        if not self._counts:
            return {}
        counts_S = np.stack(self._counts)[:, codes].sum(axis=1)
        if not counts_S.any():
            return {}
        sums_SK = np.stack(self._sums)[:, codes].sum(axis=1)
        entry: dict[str, Any] = {"tokens": int(counts_S.sum()), "texts": int((counts_S > 0).sum())}
        for column, name in columns:
            mean, error = ratio_mean(sums_SK[:, column], counts_S)
            entry[name] = {"value": mean, "stderr": error}
        return entry
