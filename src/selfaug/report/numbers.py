"""Formats of measured numbers for people."""

from __future__ import annotations

import math

from selfaug.report.gains import POINT_UNITS

__all__ = ["KL", "duration", "format_bounds", "format_count", "format_metric", "percent", "scale", "unit_label"]

KL = "KL"
"""Pseudo-unit of a divergence: nats per token, shown with four decimals, since shifts are small."""
_MINUS = "\u2212"
_DECIMALS = {"nats/token": 3, KL: 4}


def scale(unit: str) -> float:
    """Return the factor by which a value of this unit is multiplied to be shown: 100 for points, else 1."""
    return 100.0 if unit in POINT_UNITS else 1.0


def unit_label(unit: str, *, difference: bool = False) -> str:
    """Return the unit as it is shown: ``%`` for shares, ``× 100`` for scores, ``pt`` for differences of either."""
    if unit == "fraction":
        return "pt" if difference else "%"
    if unit == "score":
        return "pt" if difference else "× 100"
    return unit


def format_metric(value: float, unit: str, *, signed: bool = False) -> str:
    """Format a value of a metric, with a true minus sign.

    Points have one decimal, nats per token three, a KL four. Values of other units have four significant digits.

    Args:
        value: Value in ``unit``.
        unit: Unit of the metric, or :data:`KL`.
        signed: Whether positive values have a plus sign.
    """
    if unit in POINT_UNITS:
        return _with_sign(f"{100 * value:.1f}", signed)
    if unit in _DECIMALS:
        return _with_sign(_fixed(value, _DECIMALS[unit]), signed)
    return _with_sign(f"{value:.4g}", signed)


def _fixed(value: float, decimals: int) -> str:
    """Format with so many decimals, or with two significant digits where all decimals would be 0."""
    return f"{value:.{decimals}f}" if value == 0 or abs(value) >= 0.5 * 10**-decimals else f"{value:.1e}"


def _with_sign(text: str, signed: bool) -> str:
    number = float(text)
    if number == 0:
        return text.lstrip("-")
    if number > 0 and signed:
        text = f"+{text}"
    return text.replace("-", _MINUS)  # also that of an exponent: 1.2e-05


def format_bounds(low: float, high: float, unit: str) -> tuple[str, str]:
    """Format both bounds of an interval with signs."""
    return format_metric(low, unit, signed=True), format_metric(high, unit, signed=True)


def format_count(value: float) -> str:
    """Format a whole number with commas between thousands."""
    return f"{round(value):,}"


def percent(value: float) -> str:
    """Format a share as a number of percent, with one decimal if it is shown as less than 10 %."""
    text = f"{100 * value:.1f}"
    return text if value != 0 and abs(float(text)) < 10 else f"{100 * value:.0f}"


def duration(seconds: float) -> tuple[float, str, str]:
    """Return a time as a number, as text, and its unit: seconds, minutes from 2 min on, or hours from 2 h on.

    Minutes and hours have one decimal. Seconds have two significant digits if they are shown as less than 10 (and at
    most three decimals), else none after the point.
    """
    for length, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * length:
            return seconds / length, f"{seconds / length:.1f}", unit
    rounded = float(f"{seconds:.1e}")  # 9.96 is shown as 10, so it needs no decimal
    decimals = 0 if rounded >= 10 or rounded == 0 else 1 - math.floor(math.log10(rounded))
    return seconds, f"{seconds:.{min(decimals, 3)}f}", "s"
