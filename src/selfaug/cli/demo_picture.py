"""The figure of the demo: each score of the base, and its change by each run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selfaug.cli.demo_shown import Line

__all__ = ["draw"]

# Okabe and Ito's colours, which most colour-blind readers can distinguish; the markers differ also in grey.
_LOOKS = (("#D55E00", "o", 0.16), ("#0072B2", "s", -0.16))


def draw(measured: Sequence[Line], path: Path) -> None:
    """Write the figure as SVG, with a row for each score and a mark for each model, in percent.

    A line leads from the base's score to each run's; thin lines are 95 % intervals of the change. The same numbers give
    the same bytes.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(
        {"svg.hashsalt": "selfaug", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = Figure(figsize=(7.2, 1.05 + 0.35 * max(len(measured), 3)), layout="constrained")
        figure.patch.set_facecolor("white")  # on dark pages the letters would be invisible
        axes = figure.add_subplot()
        places = [-(row + (line.group == "mean") * 0.4 + (row > 0) * 0.4) for row, line in enumerate(measured)]
        axes.scatter(
            [100 * line.base for line in measured], places, marker="|", s=260, color="#333333", label="base", zorder=4
        )
        for (colour, marker, aside), name in zip(_LOOKS, measured[0].runs, strict=False):
            for place, line in zip(places, measured, strict=True):
                score, height = line.runs[name], place + aside
                axes.plot([100 * line.base, 100 * score.value], [height] * 2, color=colour, linewidth=2.5, alpha=0.55)
                if score.interval is not None:
                    ends = [100 * (line.base + end) for end in score.interval]
                    axes.plot(ends, [height] * 2, color=colour, linewidth=0.9)
            values = [100 * line.runs[name].value for line in measured]
            axes.scatter(values, [p + aside for p in places], marker=marker, s=34, color=colour, label=name, zorder=5)
        axes.set_yticks(places, [line.name for line in measured])
        axes.set_xlim(-2, 102)
        axes.set_xlabel("answered rightly, %")
        axes.grid(axis="x", alpha=0.3, linewidth=0.6)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        figure.savefig(path, metadata={"Date": None})
