"""The figure of a study: task against retention, with a curve for each method and the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfaug.common.errors import ConfigError

__all__ = ["draw"]

# Okabe and Ito's colours, which most colour-blind readers can distinguish; the markers distinguish them in grey.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555", "#882255")
_MARKERS = "os^DvPX*"
_LINES = ("-", "-.", ":")
_LEAST = -0.3  # points below are only counted, or they would squeeze the others into a corner


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """Write the figure as SVG; the same numbers give the same bytes.

    Raises:
        ConfigError: If matplotlib is not installed, or the file cannot be written.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            "matplotlib is not installed, and draws the picture", "pip install 'selfaug[report]'."
        ) from None
    with mpl.rc_context(
        {"svg.hashsalt": "selfaug", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = Figure(figsize=(7.2, 4.8), layout="constrained")
        axes = figure.add_subplot()
        axes.axhline(1, color="#bbbbbb", linewidth=0.8, linestyle=":")
        axes.axvline(1, color="#bbbbbb", linewidth=0.8, linestyle=":")
        axes.scatter([0, 1], [1, 0], facecolors="none", edgecolors="#777777", zorder=3)
        axes.annotate("base", (0, 1), textcoords="offset points", xytext=(4, 4), color="#777777")
        axes.annotate("LoRA", (1, 0), textcoords="offset points", xytext=(4, 4), color="#777777")
        scaled = [point for point in summary["points"] if "task" in point]
        for number, curve in enumerate(dict.fromkeys(point["curve"] for point in scaled)):
            points = sorted((p for p in scaled if p["curve"] == curve), key=lambda p: p["value"])
            colour = _COLOURS[number % len(_COLOURS)]
            marker = _MARKERS[(number + number // len(_COLOURS)) % len(_MARKERS)]
            across, up = [p["task"] for p in points], [p["retention"] for p in points]
            ours = curve.startswith("selfaug")
            line = _LINES[number // len(_COLOURS) % len(_LINES)]
            axes.plot(
                across, up, label=curve, color=colour, alpha=0.9, marker=marker, markersize=5, linestyle=line,
                linewidth=2 if ours else 1, zorder=4 if ours else 2,
            )  # fmt: skip
            for point in points:
                if point["task_interval"] and point["retention_interval"]:
                    axes.plot(point["task_interval"], [point["retention"]] * 2, color=colour, linewidth=0.6, alpha=0.5)
                    axes.plot([point["task"]] * 2, point["retention_interval"], color=colour, linewidth=0.6, alpha=0.5)
        if len(summary["worlds"]) == 1:  # points of different worlds have no common front
            front = sorted((p["task"], p["retention"]) for p in scaled if p.get("front"))
            axes.plot(*zip(*front, strict=True), color="black", linewidth=0.8, linestyle="--", label="front", zorder=0)
        outside = sum(min(p["task"], p["retention"]) < _LEAST for p in scaled)
        axes.set_xlim(left=max(axes.get_xlim()[0], _LEAST))
        axes.set_ylim(bottom=max(axes.get_ylim()[0], _LEAST))
        if outside:
            says = f"{outside} of {len(scaled)} settings lie outside, below {_LEAST}"
            axes.set_title(says, fontsize=8, color="#777777", loc="left")
        axes.set_xlabel("task (base 0, LoRA 1)")
        axes.set_ylabel("retention (LoRA 0, base 1)")
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
        try:
            figure.savefig(path, metadata={"Date": None})
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error}", "give another --output_dir.") from None
