"""The figure of forgetting against shift."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfaug.common.errors import ConfigError
from selfaug.shift.relate import Point, Relation

__all__ = ["ENDINGS", "draw"]

ENDINGS = (".svg", ".png")

# Okabe and Ito's colours, which most colour-blind readers can distinguish; the markers differ also in grey.
_LOOKS = (("#D55E00", "o"), ("#0072B2", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"))
_PALEST = 0.75  # share of white in the shade of a method's smallest α


def draw(
    points: Sequence[Point], relation: Relation, path: Path, *, shift_label: str, forgetting_label: str, title: str = ""
) -> None:
    """Write the scatter plot of forgetting against shift as SVG or PNG: a colour for each method, a shade for each α.

    The same points give the same bytes.

    Raises:
        ConfigError: If the file has another ending, matplotlib is not installed, or the file cannot be written.
    """
    if path.suffix.lower() not in ENDINGS:
        raise ConfigError(f"--output {path}: {path.suffix or 'no ending'!r}", f"end it with {' or '.join(ENDINGS)}.")
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            "matplotlib is not installed, and draws the picture",
            "pip install 'selfaug[report]'; or leave --output out.",
        ) from None
    with mpl.rc_context(
        {"svg.hashsalt": "selfaug", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        axes = figure.add_subplot()
        _scatter(axes, points)
        axes.set_xlabel(shift_label)
        axes.set_ylabel(forgetting_label)
        axes.set_title(title or headline(relation), fontsize=10, loc="left")
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.margins(0.08)
        axes.legend(frameon=False, loc="best")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stamp = {"Date": None} if path.suffix.lower() == ".svg" else {}
            figure.savefig(path, dpi=160, metadata=stamp)
        except OSError as error:
            raise ConfigError(f"--output {path} cannot be written: {error}", "give another place.") from None


def headline(relation: Relation) -> str:
    """Return both coefficients with their intervals, in one line."""
    parts = []
    for name, coefficient in (("Pearson", relation.pearson), ("Spearman", relation.spearman)):
        interval = "" if coefficient.low is None else f" [{coefficient.low:.2f}, {coefficient.high:.2f}]"
        parts.append(f"{name} {coefficient.value:.2f}{interval}")
    runs = f"{relation.runs} runs" + ("" if relation.points == relation.runs else f", {relation.points} points")
    return f"{', '.join(parts)} ({runs})"


def _scatter(axes: Any, points: Sequence[Point]) -> None:
    """Draw the points, with colour and marker by method and darker shades for larger α; labels would overlap."""
    from matplotlib.colors import to_hex, to_rgb

    methods = list(dict.fromkeys(point.method for point in points))
    for number, method in enumerate(methods):
        colour, marker = _LOOKS[number % len(_LOOKS)]
        alphas = sorted({point.alpha for point in points if point.method == method})
        for place, alpha in enumerate(alphas):
            depth = 1 - _PALEST * (len(alphas) - 1 - place) / max(len(alphas) - 1, 1)
            red, green, blue = (1 - depth * (1 - part) for part in to_rgb(colour))
            shade = to_hex((red, green, blue))
            own = [point for point in points if (point.method, point.alpha) == (method, alpha)]
            for run in dict.fromkeys(point.run for point in own):
                # A line joins the checkpoints of one run.
                run_points = [point for point in own if point.run == run]
                axes.plot(
                    [p.shift for p in run_points],
                    [p.forgetting for p in run_points],
                    color=shade,
                    linewidth=0.8,
                    alpha=0.5,
                )
            axes.scatter(
                [p.shift for p in own], [p.forgetting for p in own], c=shade, marker=marker, s=44, edgecolors=colour,
                label=f"{method}, α {alpha:g}" if alpha else method, linewidths=0.8, zorder=3,
            )  # fmt: skip
    axes.axhline(0, color="0.6", linewidth=0.6, zorder=0)
