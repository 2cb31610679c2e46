"""The files that keep the prompt settings beside an adapter."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.common.errors import DataError, nearest
from selfaug.common.files import read_json
from selfaug.data.template import digest

if TYPE_CHECKING:
    from selfaug.data.prompts import Renderer

__all__ = ["SETTINGS", "TEMPLATE", "load", "save"]

SETTINGS = "selfaug_renderer.json"
TEMPLATE = "selfaug_chat_template.jinja"
_VERSION = 1
_TUPLES = ("specials", "keep_specials")


def save(renderer: Renderer, folder: Path) -> None:
    """Write the settings to ``folder/selfaug_renderer.json``, and the chat template to a separate file beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    row: dict[str, Any] = {"version": _VERSION}
    row |= {item.name: getattr(renderer, item.name) for item in fields(renderer) if item.name != "chat_template"}
    row["chat_template_kwargs"] = dict(renderer.chat_template_kwargs)
    # Text mode could change line ends, which are part of the template's hash.
    if renderer.chat_template is not None:
        (folder / TEMPLATE).write_bytes(renderer.chat_template.encode())
    (folder / SETTINGS).write_text(json.dumps(row, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load(folder: Path) -> Renderer:
    """Return the renderer that :func:`save` wrote.

    Raises:
        DataError: If a file is missing or damaged, the version or a setting is unknown, or the template is not the one
            that was saved.
        ConfigError: If a setting has an unknown value.
    """
    from selfaug.data.prompts import Renderer

    path = folder / SETTINGS
    again = "copy the adapter's folder again, with every selfaug_* file in it."
    if not path.exists():
        raise DataError(f"{folder} holds no {SETTINGS}, so the trained prompt is not known", again)
    row = read_json(path, hint=again)
    if not isinstance(row, dict) or row.pop("version", None) != _VERSION:
        raise DataError(f"{path} is not a renderer of version {_VERSION}", "use the release of selfaug that wrote it.")
    known = [item.name for item in fields(Renderer) if item.name != "chat_template"]
    for name in row:
        if name not in known:
            raise DataError(f"{path}: unknown setting {name!r}.{nearest(name, known)}", again)
    for name in _TUPLES:
        if not isinstance(row.get(name, []), list):
            raise DataError(f"{path}: {name} is {row[name]!r:.80}, expected a list of texts", again)
        row[name] = tuple(row.get(name, []))
    if row.get("chat_template_sha256") is not None:
        try:
            row["chat_template"] = (folder / TEMPLATE).read_bytes().decode()
        except (OSError, ValueError) as error:
            raise DataError(f"{folder / TEMPLATE} cannot be read: {error}", again) from error
        if digest(row["chat_template"]) != row["chat_template_sha256"]:
            raise DataError(f"{folder / TEMPLATE} is not the template that {SETTINGS} was saved with", again)
    return Renderer(**row)
