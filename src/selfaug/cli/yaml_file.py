"""The reader of YAML files of settings, whose errors name the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from selfaug.common.errors import ConfigError, nearest

__all__ = ["read_settings"]


class _Loader(yaml.SafeLoader):
    """A loader that refuses a repeated key."""


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
    """Return the mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        ConfigError: If the file is missing, no text, no YAML, or no mapping; the message names the line.
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
