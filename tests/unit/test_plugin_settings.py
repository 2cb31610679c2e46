"""Tests of the settings of `attach` in a host's configuration."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import selfaug
from selfaug.common.errors import ConfigError
from selfaug.plugins.settings import settings_of


def test_every_setting_of_attach_is_read_and_nothing_else() -> None:
    named = {n: p.default for n, p in inspect.signature(selfaug.attach).parameters.items() if n != "trainer"}
    given = {f"selfaug_{name}": value for name, value in named.items()}
    assert settings_of({**given, "learning_rate": 1.0, "alpha": 3.0}) == named
    assert settings_of({"selfaug_alpha": 1, "selfaug_reference": None}) == {"alpha": 1}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"selfaug_alfa": 1.0}, "selfaug_alfa is not known. Did you mean 'selfaug_alpha'?"),
        ({"selfaug_alpha": "2e-1"}, "selfaug_alpha='2e-1' is of type str, where float is needed"),
        ({"selfaug_alpha": True}, "is of type bool"),
        ({"selfaug_check": 1}, "is of type int, where bool is needed"),
        ({"selfaug_reference_slice": True}, "is of type bool, where int is needed"),
        ({"selfaug_alpha": -1}, "is not a weight"),
        ({"selfaug_align_fraction": 0.0}, "is not a share"),
        ({"selfaug_align_direction": "base"}, "is not known"),
    ],
)
def test_settings_that_attach_does_not_take_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        settings_of(given)
    assert said in str(refused.value)
