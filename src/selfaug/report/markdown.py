"""The report in Markdown, for a model card or a pull request; every text is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfaug.common.flips import Flips
from selfaug.report.about import plain, settings_of
from selfaug.report.facts import Report, Run
from selfaug.report.gains import Gain, Measured
from selfaug.report.headline import Number, sentence
from selfaug.report.numbers import KL, format_bounds, format_metric, unit_label
from selfaug.run.model_card import escape

__all__ = ["flip_words", "markdown", "measured_lines"]

_WORDS = {"gain": "▲ better", "loss": "▼ worse", "none": "= same", "unclear": "≈ not clear"}
_MOST_SETTINGS = 12


def markdown(report: Report) -> str:
    """Return the whole report without figures and answers.

    Each run has a heading, a sentence, and tables of its metrics and its shift; the settings follow side by side.
    """
    many = len(report.runs) > 1
    parts = ["## What fine-tuning gained, lost and cost"]
    for run in report.runs:
        made = f"{'adapter' if run.adapter else 'all weights'} trained with {run.method}"
        parts.append(f"### {f'{run.key}: ' if many else ''}{escape(run.name)}")
        parts.append(f"{escape(run.model)}, {escape(made)}{f', α = {run.alpha:g}' if run.alpha else ''}.")
        parts += measured_lines(run)
    related = report.related
    if related is not None and related.relation is not None:
        from selfaug.shift.picture import headline

        parts += ["### Shift against forgetting", escape(headline(related.relation)) + "."]
    parts += ["### Settings", _settings(report.runs)]
    return "\n\n".join(parts) + "\n"


def measured_lines(run: Run) -> list[str]:
    """Return the paragraphs on the measurements of a run, also for the model card."""
    text = "".join(word.text if isinstance(word, Number) else word for word in sentence(run))
    parts = [f"**{escape(text)}**"]
    parts += [f"> {escape(warning)}" for warning in run.warnings]
    own = [one for one in run.metrics if one.subtask is None]
    if own:
        metrics = ("part", "metric", "base", "tuned", f"gain [{run.confidence:.0%} interval]", "", "items")
        parts.append(_table(metrics, [_row(one) for one in own], right=(2, 3, 4, 6)))
    turned = [(escape(one.part), escape(one.metric), *flip_words(one.flips)) for one in own if one.flips is not None]
    if turned:
        parts.append(_table(("part", "metric", "right → wrong", "wrong → right", "items"), turned, right=(2, 3, 4)))
        parts.append("In brackets: how many of these noise does not explain.")
    if run.left_out:
        parts.append(
            "Not measured: " + "; ".join(f"{n} of {escape(part)} ({escape(why)})" for part, why, n in run.left_out)
        )
    if run.shift is not None:
        rows = [
            (escape(name.replace("_", " ")), f"{region.tokens:,}", _with_error(region.base_to_tuned),
             _with_error(region.tuned_to_base))
            for name, region in run.shift.regions.items()
        ]  # fmt: skip
        head = ("region", "tokens", "KL(base ‖ tuned)", "KL(tuned ‖ base)")
        parts += [_table(head, rows, right=(1, 2, 3)), "Shift in nats per token, ± one standard error over texts."]
    parts += [f"- {escape(item.what)}{f': `{item.command}`' if item.command else ''}" for item in run.missing]
    return parts


def _row(one: Measured) -> tuple[str, ...]:
    values = []
    for side in ("base", "tuned"):
        entry = one.entry[side]
        error = "" if entry["stderr"] is None else f" ± {format_metric(entry['stderr'], one.unit)}"
        values.append(f"{format_metric(entry['value'], one.unit)}{error}")
    name = f"**{escape(one.metric)}**" if one.primary else escape(one.metric)
    about = (escape(one.part), f"{name} ({escape(unit_label(one.unit))})", *values)
    gain, conservative = one.gain, one.conservative
    if gain is None or conservative is None:
        return (*about, "not compared", "", "")
    return (*about, _gain(gain), _WORDS[conservative.direction], f"{gain.n:,}")


def flip_words(found: Flips) -> tuple[str, str, str]:
    """Return lost and gained items, each with how many of these noise does not explain, and the number of items."""
    lost, gained = f"{found.lost:,} ({found.surely_lost:,})", f"{found.gained:,} ({found.surely_gained:,})"
    return lost, gained, f"{found.n:,}"


def _gain(gain: Gain) -> str:
    text = f"{format_metric(gain.value, gain.unit, signed=True)} {unit_label(gain.unit, difference=True)}"
    if gain.low is None or gain.high is None:
        return text
    low, high = format_bounds(gain.low, gain.high, gain.unit)
    return f"{text} [{low}, {high}]"


def _with_error(mean: tuple[float, float | None]) -> str:
    return (
        format_metric(mean[0], KL)
        if mean[1] is None
        else f"{format_metric(mean[0], KL)} ± {format_metric(mean[1], KL)}"
    )


def _settings(runs: Sequence[Run]) -> str:
    configs = [run.config for run in runs]
    names = settings_of(configs)[0]
    differing = [name for name in names if len({plain(config.get(name)) for config in configs}) > 1]
    # Those that differ come first, and all of them are shown.
    rows = [
        (escape(name), *(escape(plain(config.get(name))) for config in configs))
        for name in names[: max(_MOST_SETTINGS, len(differing))]
    ]
    head: tuple[Any, ...] = ("setting", *(run.key for run in runs)) if len(runs) > 1 else ("setting", "value")
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    rule = ["---:" if column in right else "---" for column in range(len(head))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *rows])
