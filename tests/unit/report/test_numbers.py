"""Do numbers have the decimals that their formats promise, at the edges too?"""

from __future__ import annotations

import pytest

from selfaug.report.numbers import KL, duration, format_metric, percent


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.004, "0.4"), (0.0994, "9.9"), (0.0999, "10"), (-0.0999, "-10"), (0.1, "10"), (0.104, "10"),
     (0.95, "95")],
)  # fmt: skip
def test_a_percentage_has_a_decimal_if_it_is_shown_as_less_than_ten(value: float, text: str) -> None:
    assert percent(value) == text


@pytest.mark.parametrize(
    ("seconds", "text", "unit"),
    [(0.0, "0", "s"), (0.0004, "0.000", "s"), (0.034, "0.034", "s"), (0.996, "1.0", "s"), (9.94, "9.9", "s"),
     (9.96, "10", "s"), (10.4, "10", "s"), (119.0, "119", "s"), (120.0, "2.0", "min"), (7200.0, "2.0", "h")],
)  # fmt: skip
def test_a_time_below_ten_seconds_has_two_digits(seconds: float, text: str, unit: str) -> None:
    assert duration(seconds)[1:] == (text, unit)


@pytest.mark.parametrize(
    ("value", "unit", "signed", "text"),
    [(0.2104, "fraction", True, "+21.0"), (-0.2104, "fraction", False, "−21.0"), (-0.0001, "fraction", True, "0.0"),
     (0.00002, KL, False, "2.0e−05"), (-0.00002, KL, True, "−2.0e−05"), (1.23456, "nats/token", True, "+1.235"),
     (1234.56, "words", False, "1235")],
)  # fmt: skip
def test_signs_are_true_ones_and_none_is_left_at_zero(value: float, unit: str, signed: bool, text: str) -> None:
    assert format_metric(value, unit, signed=signed) == text
