"""Formats of measured numbers for people."""

from __future__ import annotations

import math

from selfaug.report.gains import POINTS

__all__ = ["KL", "count", "interval", "percent", "scale", "seconds", "shown", "unit_of"]

KL = "KL"
"""Unit of a divergence: nats per token, often small."""
_MINUS = "\u2212"
_DECIMALS = {"nats/token": 3, KL: 4}


def scale(unit: str) -> float:
    """Return the factor on a value of this unit when it is shown: 100 for points, else 1."""
    return 100.0 if unit in POINTS else 1.0


def unit_of(unit: str, *, difference: bool = False) -> str:
    """Return the unit of a shown number: ``%`` for shares, ``pt`` for differences, ``× 100`` for scores."""
    if unit == "fraction":
        return "pt" if difference else "%"
    if unit == "score":
        return "pt" if difference else "× 100"
    return unit


def shown(value: float, unit: str, *, signed: bool = False) -> str:
    """Format a metric with a minus sign: one decimal for points, three for nats, four for a KL, else four digits."""
    if unit in POINTS:
        return _signed(f"{100 * value:.1f}", signed)
    if unit in _DECIMALS:
        return _signed(_fixed(value, _DECIMALS[unit]), signed)
    return _signed(f"{value:.4g}", signed)


def _fixed(value: float, decimals: int) -> str:
    """Format with so many decimals, or with two significant digits where all decimals would be 0."""
    return f"{value:.{decimals}f}" if value == 0 or abs(value) >= 0.5 * 10**-decimals else f"{value:.1e}"


def _signed(text: str, signed: bool) -> str:
    number = float(text)
    if number == 0:
        return text.lstrip("-")
    return text.replace("-", _MINUS) if number < 0 or not signed else f"+{text}".replace("-", _MINUS)


def interval(low: float, high: float, unit: str) -> tuple[str, str]:
    """Format both bounds with signs."""
    return shown(low, unit, signed=True), shown(high, unit, signed=True)


def count(value: float) -> str:
    """Format a whole number with separators of thousands."""
    return f"{round(value):,}"


def percent(value: float) -> str:
    """Format a share in percent, with one decimal below 10 %."""
    return f"{100 * value:.0f}" if abs(value) >= 0.1 or value == 0 else f"{100 * value:.1f}"


def seconds(value: float) -> tuple[float, str, str]:
    """Return a time in seconds, minutes or hours, as a number, as text, and its unit."""
    for length, unit in ((3600.0, "h"), (60.0, "min")):
        if value >= 2 * length:
            return value / length, f"{value / length:.1f}", unit
    digits = 0 if value >= 10 or value == 0 else 1 - math.floor(math.log10(value))
    return value, f"{value:.{min(digits, 3)}f}", "s"
