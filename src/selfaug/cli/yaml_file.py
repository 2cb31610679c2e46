"""Reads YAML files of settings, checks them against the flags, and reports their faults."""

from __future__ import annotations

import argparse
import typing
from pathlib import Path
from typing import Any

import yaml

from selfaug.common.errors import ConfigError, nearest

__all__ = ["check_value", "read_settings"]


class _Loader(yaml.SafeLoader):
    """YAML in which a key stands once."""


def _mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for index, key in enumerate(keys):
        if key in keys[:index]:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands twice", node.value[index][0].start_mark
            )
    return dict(yaml.SafeLoader.construct_mapping(loader, node, deep=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; an empty file is an empty mapping.

    Raises:
        ConfigError: If the file is missing, no text, no YAML, or holds something else; with the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ConfigError(
            f"the settings file {path} does not exist.{nearest(path.name, siblings)}", "check the path after --config."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the settings file {path} cannot be read: {error}", "pass a YAML text file.") from None
    try:
        settings = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{path}{line}: {problem}", "correct the YAML: one `name: value` a line.") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ConfigError(f"{path} is no mapping of settings", "write one `name: value` a line.")
    return settings


def check_value(action: argparse.Action, hint: Any, value: Any, where: str) -> Any:
    """A YAML value as the flag of the same name would have it.

    Args:
        action: The flag.
        hint: The type of the field behind it.
        value: What YAML read.
        where: File and key, for the message.

    Raises:
        ConfigError: If the flag could not hold the value.
    """
    kinds = set(typing.get_args(hint)) or {hint}
    origins = {typing.get_origin(kind) or kind for kind in kinds | {hint}}
    expected = _expected(action, kinds)
    if value is None and (type(None) in kinds or action.default is None):
        return None
    if isinstance(value, dict) and dict in origins:
        return value
    if isinstance(value, dict) and action.nargs in ("+", "*"):  # `map: {question: query}` is `--map question=query`
        value = [f"{key}={inner}" for key, inner in value.items()]
    if isinstance(value, list) and (action.nargs in ("+", "*") or list in origins):
        plain = action.nargs is None or all(isinstance(entry, dict) for entry in value)
        return value if plain else [_textcheck_value(action, entry, where, expected) for entry in value]
    if isinstance(value, bool) and bool not in kinds:
        # YAML 1.1 reads `eval_strategy: no` as false.
        words = ("yes", "on", "true") if value else ("no", "off", "false")
        match = next((word for word in words if action.choices and word in action.choices), None)
        if match is None and str not in kinds:
            raise _wrong(where, value, expected)
        return match if match is not None else str(value).lower()
    if isinstance(value, (str, int, float, bool)):
        return _textcheck_value(action, value, where, expected)
    raise _wrong(where, value, expected)


def _textcheck_value(action: argparse.Action, value: Any, where: str, expected: str) -> Any:
    convert = action.type if callable(action.type) else str
    try:
        converted = convert(str(value))
    except (ValueError, TypeError, argparse.ArgumentTypeError):
        raise _wrong(where, value, expected) from None
    if action.choices is not None and converted not in action.choices:
        raise _wrong(where, value, expected + nearest(str(value), map(str, action.choices)))
    return converted


def _wrong(where: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"{where} is {value!r}; expected {expected}", "correct the value in the file.")


def _expected(action: argparse.Action, kinds: set[Any]) -> str:
    if action.choices is not None:
        return "one of " + ", ".join(map(str, action.choices))
    words = {bool: "true or false", int: "a whole number", float: "a number", dict: "a mapping", str: "a text"}
    known = [word for kind, word in words.items() if kind in {typing.get_origin(kind) or kind for kind in kinds}]
    return ("a list of " if action.nargs == "+" else "") + (" or ".join(known) or "another type")
