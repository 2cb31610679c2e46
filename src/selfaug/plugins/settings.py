"""The settings of :func:`selfaug.attach` in a host's configuration, such as ``selfaug_alpha``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from selfaug.attachment import attach, check_settings
from selfaug.common.errors import ConfigError, nearest

__all__ = ["PREFIX", "settings_of"]

PREFIX = "selfaug_"


def settings_of(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of :func:`selfaug.attach` that a configuration sets, by their names there.

    Args:
        configuration: Configuration of the host; keys without :data:`PREFIX`, and keys set to ``None``, are left.

    Raises:
        ConfigError: If a key with the prefix is not known, or its value is of another kind or out of range.
    """
    known = {
        f"{PREFIX}{name}": parameter.default
        for name, parameter in inspect.signature(attach).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    given = {key: value for key, value in configuration.items() if key.startswith(PREFIX) and value is not None}
    for key, value in given.items():
        if key not in known:
            raise ConfigError(f"{key} is not known.{nearest(key, known)}", f"choose from: {', '.join(known)}.")
        kinds = (int, float) if known[key] is None or isinstance(known[key], float) else (type(known[key]),)
        example = 0.5 if known[key] is None else known[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ConfigError(
                f"{key}={value!r} is of type {type(value).__name__}, where {kinds[-1].__name__} is needed.",
                f"write e.g. {key}: {example} (YAML takes 2e-1 for a text, and 2.0e-1 for a number).",
            )
    settings = {key.removeprefix(PREFIX): value for key, value in {**known, **given}.items()}
    check_settings(*(settings[name] for name in inspect.signature(check_settings).parameters))
    return {key.removeprefix(PREFIX): value for key, value in given.items()}
