"""Which models of the lab come with the package, and by which names does every verb know them?"""

from __future__ import annotations

from pathlib import Path

from selfaug.common.errors import ConfigError, nearest
from selfaug.lab import smollm2

__all__ = ["ASSETS", "NAMES", "resolve"]

ASSETS = Path(__file__).parent / "assets"
"""A folder for each size, as `from_pretrained` loads it."""

NAMES = {"lab": "base", "lab:small": "small", "lab:base": "base", "lab:large": "large"}
"""Names of models, and the size that each stands for."""


def resolve(name: str) -> str:
    """The folder of a model that comes with the package or is fetched for it; any other name or path as it is.

    A file or folder of that name in the working folder goes first.

    Raises:
        ConfigError: If the name begins with ``lab:`` and there is no such size, or its weights do not come along, or
            ``smollm2`` cannot be fetched.
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
