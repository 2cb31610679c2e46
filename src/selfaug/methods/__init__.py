"""Ways of fine-tuning that may keep more; a registry by name."""

from __future__ import annotations

from selfaug.errors import ConfigError, nearest
from selfaug.methods.base import Method
from selfaug.methods.selfaug import SelfAug
from selfaug.methods.sft import SFT

__all__ = ["Method", "available", "get_method"]

_METHODS: dict[str, Method] = {method.name: method for method in (SelfAug(), SFT())}


def available() -> dict[str, str]:
    """Names and one-line summaries."""
    return {name: method.summary for name, method in _METHODS.items()}


def get_method(name: str) -> Method:
    """The method of a name.

    Raises:
        ConfigError: If there is none; the near name is given.
    """
    if name not in _METHODS:
        raise ConfigError(
            f"method={name!r} is not known.{nearest(name, _METHODS)}", f"choose one of: {', '.join(_METHODS)}."
        )
    return _METHODS[name]
