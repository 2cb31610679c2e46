"""The report as one HTML file without scripts or network access, for light and dark screens, phones and paper.

The template engine escapes all texts of models and data; only our own style sheet and figures are inserted as markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from selfaug.common.errors import ConfigError
from selfaug.report import figures
from selfaug.report.about import plain, settings_of
from selfaug.report.facts import Report, Run, Side
from selfaug.report.gains import Measured
from selfaug.report.gaps import Missing
from selfaug.report.headline import Number, sentence
from selfaug.report.numbers import duration, format_count, format_metric, percent, unit_label
from selfaug.report.regressions import Piece, Regression, marked, shortened
from selfaug.report.shifts import Region
from selfaug.report.svg import Picture

__all__ = ["page", "raw", "title_of"]

Row = tuple[str, list[tuple[str, list[tuple[Run, Measured]]]]]


def page(report: Report, *, title: str | None = None) -> str:
    """Return the whole HTML file; the same facts give the same bytes.

    Args:
        report: Facts of the report.
        title: Title of the page; ``None`` for the names of the runs.

    Raises:
        ConfigError: If jinja2 or matplotlib is not installed.
    """
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError:
        raise ConfigError(
            "jinja2 is not installed, and makes the report's page",
            "pip install 'selfaug[report]'; or ask for --format md.",
        ) from None
    folder = files("selfaug.report") / "templates"

    def data(value: float, text: str) -> Any:
        return Markup('<data value="{}">{}</data>').format(raw(value), text)

    def lead(run: Run) -> Any:
        return Markup("").join(
            data(word.value, word.text) if isinstance(word, Number) else word for word in sentence(run)
        )

    def time(value: float) -> Any:
        number, text, unit = duration(value)
        return Markup("{} {}").format(data(number, text), unit)

    def coefficient(estimate: Any) -> Any:
        value = data(estimate.value, f"{estimate.value:.2f}")
        if estimate.low is None or estimate.high is None:
            return value
        low, high = (data(end, f"{end:.2f}") for end in (estimate.low, estimate.high))
        return Markup("{} [{}, {}]").format(value, low, high)

    environment = Environment(
        loader=FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    places = {run.key: place for place, run in enumerate(report.runs)}
    pictures = {
        "gains": figures.gains(report),
        "training": figures.training(report),
        "regions": figures.regions(report),
        "layers": figures.layers(report),
        "related": figures.related(report),
    }
    environment.globals |= {
        "format_count": format_count,
        "format_metric": format_metric,
        "unit_label": unit_label,
        "raw": raw,
        "cut": shortened,
        "lead": lead,
        "time": time,
        "coefficient": coefficient,
        "percent_data": lambda value: data(100 * value, percent(value)),
        "svg": _trusted_svg(Markup),
        "loop_index": lambda run: places[run.key] % len(figures.MARKERS) + 1,
        "side_of": _side,
        "differing": _differing,
        "lacking": lambda verb: _lacking(report.runs, verb),
        "unmeasurable": lambda run: [item for item in run.missing if not _by_verb(item, "evaluate", "shift")],
    }
    return environment.get_template("report.html.j2").render(
        report=report,
        title=title or title_of(report),
        style=Markup((folder / "style.css").read_text(encoding="utf-8")),
        pictures=pictures,
        rows=_rows(report.runs),
        omissions=_omissions(report.runs),
        regions=_regions(report.runs),
        settings=_settings(report.runs),
        flips_any=any(one.flips and one.subtask is None for run in report.runs for one in run.metrics),
        measured_any=any(run.metrics for run in report.runs),
        worst_any=any(run.worst for run in report.runs),
        evaluated_in_training=any(
            name.startswith("eval_") for run in report.runs if run.training for name in run.training.curves
        ),
    )


def title_of(report: Report) -> str:
    """Return the names of the runs, at most three."""
    names = [run.name for run in report.runs]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def raw(value: float) -> str:
    """Format a number with all digits, as in the run's files."""
    return repr(value)


def _trusted_svg(markup: Any) -> Any:
    def svg(picture: Picture) -> Any:
        return markup(picture.svg)  # made by matplotlib, which escapes the texts that it draws

    return svg


def _side(run: Run, group: str) -> Side | None:
    return next((side for side in run.sides if side.group == group), None)


def _differing(fall: Regression) -> tuple[list[Piece], list[Piece]] | None:
    """Return both answers in marked pieces; ``None`` for items without answers (plain text and multiple choice)."""
    base, tuned = fall.base_response or "", fall.tuned_response or ""
    return marked(base, tuned) if base or tuned else None


def _lacking(runs: Sequence[Run], verb: str) -> list[Missing]:
    many = len(runs) > 1
    return [
        Missing(f"{run.key}: {item.what[0].lower()}{item.what[1:]}" if many else item.what, item.command)
        for run in runs
        for item in run.missing
        if _by_verb(item, verb)
    ]


def _by_verb(item: Missing, *verbs: str) -> bool:
    """Whether one of the verbs makes the missing measurement."""
    return item.command is not None and item.command.split()[1] in verbs


def _rows(runs: Sequence[Run]) -> list[Row]:
    """Return parts, their metrics and each run's numbers, in the order of the first run that has them."""
    parts: dict[str, dict[str, list[tuple[Run, Measured]]]] = {}
    for run in runs:
        for one in run.metrics:
            label = one.metric if one.subtask is None else f"{one.subtask}, {one.metric}"
            parts.setdefault(one.part, {}).setdefault(label, []).append((run, one))
    return [(part, list(metrics.items())) for part, metrics in parts.items()]


def _omissions(runs: Sequence[Run]) -> list[tuple[list[Run], tuple[tuple[str, str, int], ...]]]:
    """Return the items that were left out, with the runs that left out the same."""
    sharing: dict[tuple[tuple[str, str, int], ...], list[Run]] = {}
    for run in runs:
        if run.left_out:
            sharing.setdefault(run.left_out, []).append(run)
    return [(same, left_out) for left_out, same in sharing.items()]


def _regions(runs: Sequence[Run]) -> list[tuple[str, list[tuple[Run, Region]]]]:
    regions: dict[str, list[tuple[Run, Region]]] = {}
    for run in runs:
        for name, region in (run.shift.regions if run.shift else {}).items():
            regions.setdefault(name.replace("_", " "), []).append((run, region))
    return list(regions.items())


def _settings(runs: Sequence[Run]) -> tuple[list[tuple[str, list[str], bool]], list[tuple[str, list[str], bool]]]:
    configs = [run.config for run in runs]

    def rows(names: Sequence[str]) -> list[tuple[str, list[str], bool]]:
        values = [(name, [plain(config.get(name)) for config in configs]) for name in names]
        return [(name, own, len(set(own)) > 1) for name, own in values]

    first, rest = settings_of(configs)
    return rows(first), rows(rest)
