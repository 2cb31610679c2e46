"""The conversion of a library's refusal of settings into an error with the settings, their values and a hint."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from selfaug.common.errors import ConfigError, tidy

__all__ = ["plain", "refused"]


def refused(error: Exception, names: Sequence[str], values: Mapping[str, Any]) -> ConfigError:
    """Return the error, with the settings that the library names, else those that differ from their defaults."""
    text = tidy(error)
    chosen = [name for name in names or values if name in _defaults() and values.get(name) != _defaults()[name]]
    mentioned = [
        name
        for name in chosen
        if re.search(rf"\b{name}\b", text) or (len(_shown(values[name])) > 2 and _shown(values[name]) in text)
    ]
    blamed = (mentioned or (chosen if names else []))[:3]
    message = f"{', '.join(f'--{name} {_shown(values[name])}' for name in blamed)} cannot be used: {text}"
    out = f"leave {' and '.join(f'--{name}' for name in blamed)} out"
    if not blamed:
        message, out = f"the training could not be set up: {text}", "leave the setting out"
    if isinstance(error, ImportError) or "install" in text.lower():
        return ConfigError(message, f"install the package that is named above, or {out}.")
    return ConfigError(message, f"change the value, or {out}; `selfaug train --help-all` explains each setting.")


@cache
def _defaults() -> dict[str, Any]:
    from trl import ModelConfig, SFTConfig

    fields = [field for kind in (SFTConfig, ModelConfig) for field in dataclasses.fields(kind)]
    return {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}


def _shown(value: Any) -> str:
    if isinstance(value, (list, set)):
        return " ".join(map(str, value))
    return str(plain(value))


def plain(value: Any) -> Any:
    """Return the value of an enumeration's member, and any other value as it is."""
    return getattr(value, "value", value)
