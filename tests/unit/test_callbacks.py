"""Are logged numbers shown as people read them, and is what a log keeps on resume what was really trained?"""

from __future__ import annotations

import json

import pytest

from selfaug.training.callbacks import _number, kept_entries


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (39130, "39130"),  # a count
        (39130.4, "39130"),
        (12345678.0, "12345678"),
        (3.14159, "3.142"),
        (0.38541, "0.3854"),
        (2e-05, "2e-05"),
        (1.2984e12, "1.298e+12"),
        (0.0, "0"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_are_shown_as_people_read_them(value: float, shown: str) -> None:
    assert _number(value) == shown


def test_a_log_keeps_the_steps_up_to_the_checkpoint() -> None:
    lines = [json.dumps({"step": step}) for step in (1, 2, 3)]
    text = "\n".join([*lines[:2], '{"step": 2, "lo', lines[2]])
    assert kept_entries(text, 2) == lines[:2]
    assert kept_entries(text, 0) == []
