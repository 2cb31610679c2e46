"""The figures of a report; they can be read without colour.

Each run has a letter, a colour, a marker and a line style; figures of a single run have no legend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from selfaug.report.facts import Report, Run
from selfaug.report.gains import POINT_UNITS, Measured
from selfaug.report.numbers import scale
from selfaug.report.svg import INK, MUTED, SERIES, Picture, drawing
from selfaug.report.training import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MARKERS", "gains", "layers", "regions", "related", "training"]

MARKERS = "os^Dv*Xp"
_LINES = ("-", "--", "-.", ":")
_MOST_ROWS = 14
_LONGEST_LABEL = 26
_GAP = "\u00a0" * 4
_REGIONS = {
    "system": "system", "documents": "documents", "question": "question", "other": "template", "boundary": "boundary",
    "response": "response", "general_text": "general text",
}  # fmt: skip


def _look(place: int) -> dict[str, Any]:
    return {"color": SERIES[place % len(SERIES)], "marker": MARKERS[place % len(MARKERS)], "markeredgewidth": 0}


def _legend(axes: Axes, runs: Sequence[Run]) -> None:
    if len(runs) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=8, columnspacing=1.2, handletextpad=0.4)


def gains(report: Report) -> list[Picture]:
    """Draw the gain of every metric with its interval: one figure for points, and one for each other unit."""
    pictures = []
    every = [(place, one) for place, run in enumerate(report.runs) for one in run.metrics if one.subtask is None]
    for number, unit in enumerate(_units(one for _, one in every)):
        rows = _rows([one for _, one in every if _family(one) == unit])
        drawn = [(place, one) for place, one in every if _name(one) in rows and one.gain is not None]
        if not drawn:
            continue
        what = "points" if unit == "pt" else unit
        title = f"Gain in {what}"
        description = f"Gain of each metric from base to tuned, in {what}, with its interval; right of 0 is better."
        height = 1.0 + len(rows) * max(0.3, 0.16 * len(report.runs))
        with drawing(f"gain{number}", title, description, height=height) as (picture, axes):
            for place, run in enumerate(report.runs):
                _forest(axes, rows, [one for at, one in drawn if at == place], place, run.key, len(report.runs))
            axes.axvline(0, color=MUTED, linewidth=1)
            axes.set_yticks(range(len(rows)), [_short(row) for row in rows])
            axes.tick_params(axis="y", labelcolor=INK)
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.grid(axis="y", visible=False)
            axes.set_xlabel(f"← lost{_GAP}{unit}{_GAP}gained →")
            _legend(axes, report.runs)
        pictures.append(picture)
    return pictures


def _family(one: Measured) -> str:
    return "pt" if one.unit in POINT_UNITS else one.unit


def _units(metrics: Any) -> list[str]:
    return sorted(dict.fromkeys(_family(one) for one in metrics), key=lambda unit: unit != "pt")


def _name(one: Measured) -> str:
    part = one.name if one.name != one.metric else one.part
    return f"{part} {one.metric}"


def _short(name: str) -> str:
    """Shorten a label to leave room for the plot; the table has the whole name."""
    return name if len(name) <= _LONGEST_LABEL else f"{name[:12]}…{name[13 - _LONGEST_LABEL :]}"


def _rows(metrics: Sequence[Measured]) -> list[str]:
    rows = list(dict.fromkeys(_name(one) for one in metrics))
    return rows if len(rows) <= _MOST_ROWS else list(dict.fromkeys(_name(one) for one in metrics if one.primary))


def _forest(axes: Axes, rows: Sequence[str], metrics: Sequence[Measured], place: int, key: str, runs: int) -> None:
    offset = (place - (runs - 1) / 2) * 0.6 / max(runs, 2)
    label: str | None = key
    for one in metrics:
        gain, times = one.gain, scale(one.unit)
        if gain is None:
            continue
        at = rows.index(_name(one)) + offset
        look = _look(place)
        if gain.low is not None and gain.high is not None:
            axes.plot([times * gain.low, times * gain.high], [at, at], color=look["color"], linewidth=2)
        axes.plot([times * gain.value], [at], linestyle="", label=label, **look)
        label = None


def training(report: Report) -> list[Picture]:
    """Draw NLL and alignment over steps; evaluations during training are hollow markers."""
    curves = [run.training.curves if run.training else {} for run in report.runs]
    pictures = []
    for number, (name, title, what) in enumerate(
        [("nll", "NLL of responses", "nats per token"), ("loss", "Training loss", "loss"),
         ("alignment", "Alignment", "KL, nats per token")]
    ):  # fmt: skip
        if not any(name in own or f"eval_{name}" in own for own in curves):
            continue
        if name == "alignment" and not any(any(own[name].values) for own in curves if name in own):
            continue
        description = f"{title} ({what}) over training steps; hollow markers are evaluations on held-out data."
        with drawing(f"curve{number}", title, description) as (picture, axes):
            for place, (run, own) in enumerate(zip(report.runs, curves, strict=True)):
                _course(axes, own.get(name), own.get(f"eval_{name}"), place, run.key)
            axes.set_xlabel("step")
            axes.set_ylabel(what)
            axes.locator_params(axis="x", integer=True)
            _legend(axes, report.runs)
        pictures.append(picture)
    return pictures + _probes(report)


def _probes(report: Report) -> list[Picture]:
    """Draw the probe of general ability over steps, with its interval over items and the limits."""
    probed = [
        (place, run, run.training.curves)
        for place, run in enumerate(report.runs)
        if run.training is not None and "probe_kl" in run.training.curves
    ]
    if not probed:
        return []
    description = (
        "KL(base ‖ tuned) on the base's own answers to general prompts, in nats per token, over training steps, with "
        "its interval over prompts; a dashed line is a probe_limit."
    )
    with drawing("probe", "Probe of general ability", description) as (picture, axes):
        for place, run, own in probed:
            look, line = _look(place), _LINES[place % len(_LINES)]
            curve = own["probe_kl"]
            axes.plot(curve.steps, curve.values, line, label=run.key, markersize=4.5, **look)
            low, high = own.get("probe_kl_low"), own.get("probe_kl_high")
            if low is not None and high is not None:
                axes.fill_between(low.steps, low.values, high.values, color=look["color"], alpha=0.2, linewidth=0)
            if run.config.get("probe_limit") is not None:
                axes.axhline(float(run.config["probe_limit"]), color=look["color"], linestyle="--", linewidth=1)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("step")
        axes.set_ylabel("KL, nats per token")
        axes.locator_params(axis="x", integer=True)
        _legend(axes, [run for _, run, _ in probed] if len(report.runs) > 1 else [])
    return [picture]


def _course(axes: Axes, trained: Curve | None, evaluated: Curve | None, place: int, key: str) -> None:
    look = _look(place)
    line = _LINES[place % len(_LINES)]
    if trained is not None:
        few = max(1, len(trained.steps) // 8)
        axes.plot(trained.steps, trained.values, line, label=key, markersize=4.5, markevery=few, **look)
    if evaluated is not None:
        hollow = {**look, "markeredgewidth": 1.4, "markerfacecolor": "none", "markeredgecolor": look["color"]}
        label = None if trained is not None else key
        axes.plot(evaluated.steps, evaluated.values, linestyle="", label=label, markersize=7.5, **hollow)


def regions(report: Report) -> list[Picture]:
    """Draw KL(base ‖ tuned) by region, and over checkpoints where there are several."""
    shifts = [(place, run) for place, run in enumerate(report.runs) if run.shift is not None]
    names = [name for name in _REGIONS if any(run.shift and name in run.shift.regions for _, run in shifts)]
    if not names:
        return []
    description = "KL(base ‖ tuned) in nats per token, by region of the text, with one standard error over texts."
    height = 1.0 + len(names) * max(0.28, 0.17 * len(shifts))
    with drawing("region", "Shift by region", description, height=height) as (picture, axes):
        thick = 0.72 / len(shifts)
        for number, (place, run) in enumerate(shifts):
            measured = run.shift.regions if run.shift else {}
            own = [name for name in names if name in measured]
            at = [names.index(name) + (number - (len(shifts) - 1) / 2) * thick for name in own]
            look = _look(place)
            values = [measured[name].base_to_tuned[0] for name in own]
            errors = [measured[name].base_to_tuned[1] or 0.0 for name in own]
            axes.barh(at, values, height=thick * 0.86, color=look["color"], alpha=0.45, linewidth=0)
            axes.errorbar(values, at, xerr=errors, fmt=look["marker"], color=look["color"], markersize=5,
                          markeredgewidth=0, elinewidth=1.4, label=run.key)  # fmt: skip
        axes.set_yticks(range(len(names)), [_REGIONS[name] for name in names])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("KL(base ‖ tuned), nats per token")
        _legend(axes, [run for _, run in shifts] if len(report.runs) > 1 else [])
    pictures = [picture]
    courses = [(place, run, run.shift.course) for place, run in shifts if run.shift and run.shift.course]
    if courses:
        description = "KL(base ‖ tuned) on prompts, in nats per token, over the run's checkpoints."
        with drawing("course", "Shift over training", description) as (picture, axes):
            for place, run, points in courses:
                axes.plot(*zip(*points, strict=True), _LINES[place % len(_LINES)], label=run.key, **_look(place))
            axes.locator_params(axis="x", integer=True)
            axes.set_xlabel("step")
            axes.set_ylabel("KL(base ‖ tuned), nats per token")
            _legend(axes, [run for _, run, _ in courses] if len(report.runs) > 1 else [])
        pictures.append(picture)
    return pictures


def layers(report: Report) -> list[Picture]:
    """Draw the rotation of hidden states and the change of their norm after each layer."""
    own = [(place, run, run.shift.layers) for place, run in enumerate(report.runs) if run.shift and run.shift.layers]
    if not own:
        return []
    whole: list[tuple[str, str, str, str, Callable[[Any], float]]] = [
        ("turn", "Turn of hidden states", "1 − cosine(base, tuned)", "1 minus the cosine between base and tuned hidden",
         lambda layer: 1 - layer.cosine),
        ("norm", "Change of their length", "relative change of the norm", "Relative change of the norm of hidden",
         lambda layer: layer.norm_change),
    ]  # fmt: skip
    pictures = []
    for name, title, label, description, value in whole:
        with drawing(name, title, f"{description} states behind each layer, mean over positions.") as (picture, axes):
            for place, run, own_layers in own:
                numbers = [layer.number for layer in own_layers]
                line = _LINES[place % len(_LINES)]
                axes.plot(
                    numbers, [value(layer) for layer in own_layers], line, label=run.key, markersize=4.5, **_look(place)
                )
            axes.set_xlabel("layer")
            axes.set_ylabel(label)
            axes.locator_params(axis="x", integer=True)
            if name == "turn":
                axes.set_ylim(bottom=0)
            else:
                axes.axhline(0, color=MUTED, linewidth=1)
            _legend(axes, [run for _, run, _ in own] if len(report.runs) > 1 else [])
        pictures.append(picture)
    return pictures


def related(report: Report) -> list[Picture]:
    """Draw forgetting against shift, with one point for each run."""
    if report.related is None or not report.related.points:
        return []
    places: Mapping[str, int] = {run.key: place for place, run in enumerate(report.runs)}
    description = "Each run's shift on prompts against the rise of its NLL on general text, in nats per token."
    with drawing("related", "One point a run", description) as (picture, axes):
        for point in report.related.points:
            axes.plot([point.shift], [point.forgetting], linestyle="", markersize=7, **_look(places[point.run]))
            axes.annotate(point.run, (point.shift, point.forgetting), xytext=(7, 5), textcoords="offset points")
        axes.axhline(0, color=MUTED, linewidth=1)
        axes.margins(0.14)
        axes.set_xlabel("shift: KL(base ‖ tuned) on prompts")
        axes.set_ylabel("forgetting: rise of the NLL")
    return [picture]
