"""Options of methods: their declaration, and the parsing and checks of given values.

A method's options are the fields of a frozen data class, made with :func:`option`. They reach it through one setting,
`method_options`: a mapping in YAML, and on the command line ``beta=0.5,top=20`` or a JSON object.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from selfaug.common.errors import ConfigError, nearest

__all__ = ["NoOptions", "option", "paths_in", "read_options", "resolve_options"]

_EXAMPLE = "write for example --method_options beta=0.5, or in YAML `method_options: {beta: 0.5}`."


@dataclass(frozen=True)
class NoOptions:
    """Of a method that has none."""


def option(
    default: Any,
    says: str,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    path: bool = False,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field of a method's options.

    Args:
        default: Its type is the option's type; ``None`` stands for a text.
        says: One sentence for the documentation.
        least: The smallest value taken.
        most: The largest value taken.
        above: Values must be larger than this.
        path: Whether it names a file or folder: its hash goes into the manifest, and a local one becomes absolute.
        choices: The values taken; empty for any.
    """
    metadata = {"help": says, "least": least, "most": most, "above": above, "path": path, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


def read_options(given: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """What was given as a mapping of names to values.

    Raises:
        ConfigError: If it is neither a mapping, a JSON object, nor ``name=value`` pairs joined by commas.
    """
    if given is None:
        return {}
    if isinstance(given, str) and given.strip().startswith("{"):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise ConfigError(f"method_options is no JSON object: {error}", _EXAMPLE) from None
    if isinstance(given, str):
        pairs = [pair.partition("=") for pair in given.split(",") if pair.strip()]
        if not all(name.strip() and equals for name, equals, _ in pairs):
            raise ConfigError(f"method_options={given!r} is not of the form name=value,name=value", _EXAMPLE)
        return {name.strip(): yaml.safe_load(value) for name, _, value in pairs}
    if not isinstance(given, Mapping):
        raise ConfigError(f"method_options is {given!r}, not a mapping of names to values", _EXAMPLE)
    return {str(name): value for name, value in given.items()}


def resolve_options(method: str, classes: Sequence[type], given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a method (or of the parts of a combination), with defaults filled in.

    Args:
        method: Its name, for messages.
        classes: The data classes of options; their fields have different names.
        given: By name.

    Raises:
        ConfigError: For a name that is none of the method's (with the near one), a wrong type, a value out of range.
    """
    fields = {field.name: field for one in classes for field in dataclasses.fields(one)}
    for name in given:
        if name not in fields:
            known = f"it has {', '.join(sorted(fields))}" if fields else "it has no options"
            raise ConfigError(
                f"method_options: {name!r} is not an option of method={method!r}.{nearest(name, fields)}",
                f"remove or correct it: {known}.",
            )
    return {name: _checked(method, field, given.get(name, field.default)) for name, field in fields.items()}


def paths_in(classes: Sequence[type], options: Mapping[str, Any] | None) -> dict[str, Path]:
    """The files and folders that options name, by option."""
    named = [field.name for one in classes for field in dataclasses.fields(one) if field.metadata["path"]]
    return {name: Path((options or {})[name]) for name in named if (options or {}).get(name) is not None}


def _checked(method: str, field: dataclasses.Field[Any], value: Any) -> Any:
    wanted = str if field.default is None else type(field.default)
    if value is None and field.default is None:
        return None
    if wanted is float:
        value = _number(value)
    if isinstance(value, bool) != (wanted is bool) or not isinstance(value, wanted):
        raise ConfigError(
            f"method_options: {field.name}={value!r} of method={method!r} is not of type {wanted.__name__}",
            f"{field.metadata['help']} The default is {field.default!r}.",
        )
    choices = field.metadata["choices"]
    if choices and value not in choices:
        raise ConfigError(
            f"method_options: {field.name}={value!r} of method={method!r} is not known.{nearest(str(value), choices)}",
            f"choose one of: {', '.join(choices)}.",
        )
    if field.metadata["path"]:
        local = Path(str(value)).expanduser()
        return str(local.resolve()) if local.exists() else value
    least, most, above = (field.metadata[bound] for bound in ("least", "most", "above"))
    # A number that is not one compares false with every bound.
    inside = (least is None or value >= least) and (most is None or value <= most) and (above is None or value > above)
    if not inside or (isinstance(value, float) and value != value):
        bounds = [
            f"{text} {bound:g}"
            for text, bound in (("at least", least), ("above", above), ("at most", most))
            if bound is not None
        ]
        raise ConfigError(
            f"method_options: {field.name}={value!r} of method={method!r} is out of range",
            f"give a number {' and '.join(bounds)}. {field.metadata['help']}",
        )
    return value


def _number(value: Any) -> Any:
    if isinstance(value, str):  # YAML takes 1e-3 for a text
        try:
            return float(value)
        except ValueError:
            return value
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
