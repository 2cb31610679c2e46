"""The lab models that come with the package, and their names on the command line."""

from __future__ import annotations

from pathlib import Path

from selfaug.common.errors import ConfigError, nearest
from selfaug.lab import smollm2

__all__ = ["ASSETS", "NAMES", "resolve"]

ASSETS = Path(__file__).parent / "assets"
"""Folder with a subfolder for each size, which `from_pretrained` loads."""

NAMES = {"lab": "base", "lab:small": "small", "lab:base": "base", "lab:large": "large"}
"""Names of models, and the size of each."""


def resolve(name: str) -> str:
    """Return the folder of a model that comes with the package or is downloaded for it; other names as they are.

    A file or folder of that name in the working folder has precedence.

    Raises:
        ConfigError: If the name begins with ``lab:`` and there is no such size, its weights are not in the package, or
            ``smollm2`` cannot be downloaded.
    """
    if name == smollm2.NAME and not Path(name).exists():
        return str(smollm2.fetch())
    if name in NAMES and not Path(name).exists():
        folder = ASSETS / NAMES[name]
        if not folder.is_dir():
            raise ConfigError(
                f"the weights of {name!r} do not come with this version.",
                f"make them: `selfaug lab make --size {NAMES[name]} --output_dir FOLDER`, and give that folder.",
            )
        return str(folder)
    if name.startswith("lab:") and not Path(name).exists():
        raise ConfigError(
            f"{name!r} is no model of the lab.{nearest(name, NAMES)}", f"choose one of: {', '.join(NAMES)}."
        )
    return name
