"""The base of an adapter: its name, revision and the hash of its weights, in a file beside the adapter."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfaug.common.errors import ConfigError
from selfaug.common.files import read_json, write_durably
from selfaug.common.weights import model_hash

__all__ = ["BASE_FILE", "Base"]

BASE_FILE = "selfaug_base.json"
_HINT = "name the base that it was trained on; to use another one knowingly, remove that file."


@dataclass(frozen=True)
class Base:
    """The model that an adapter was trained on.

    Args:
        name: Folder or hub name that it was loaded from.
        revision: Commit on the hub; ``None`` for a folder.
        weights: Hash of its weight files; ``None`` where they are not known.
    """

    name: str
    revision: str | None
    weights: str | None

    @classmethod
    def of(cls, model: Any) -> Base:
        """Return the base that a model of `transformers` was loaded from; without a hash if it was made in memory."""
        name, commit = str(model.config._name_or_path), getattr(model.config, "_commit_hash", None)
        try:
            return cls(name, commit, model_hash(name, commit or "main") if name else None)
        except ValueError:  # neither a folder that exists nor a possible name on the hub
            return cls(name, commit, None)

    @classmethod
    def read(cls, folder: Path) -> Base | None:
        """Return what is kept in an adapter's folder; ``None`` where nothing is.

        Raises:
            ConfigError: If the file is damaged.
        """
        file = folder / BASE_FILE
        if not file.is_file():
            return None
        try:
            return cls(**read_json(file, hint="restore the file.", error=ConfigError))
        except TypeError:
            raise ConfigError(f"{file} does not describe a base model", "restore the file.") from None

    def write(self, folder: Path) -> None:
        """Keep this in an adapter's folder; nothing without a hash, which alone can be checked."""
        if self.weights is not None:
            write_durably(folder / BASE_FILE, json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    def require(self, name: str, revision: str | None, folder: Path) -> None:
        """Require that a model has the weights that the adapter in a folder was trained on.

        Raises:
            ConfigError: If it has others; nothing where its files are not on this machine.
        """
        now = model_hash(name, revision or "main", full=str(self.weights).startswith("sha256:"))
        if now is not None and now != self.weights:
            raise ConfigError(
                f"the weights of {name} are not those that the adapter in {folder} was trained on ({self.weights} of "
                f"{self.name} in its {BASE_FILE}, {now} now)",
                _HINT,
            )

    def write_with(self, model: Any) -> None:
        """Keep this wherever ``model.save_pretrained`` saves from now on."""
        original = model.save_pretrained

        @functools.wraps(type(model).save_pretrained)
        def save_pretrained(_: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
            saved = original(save_directory, *args, **kwargs)
            self.write(Path(save_directory))
            return saved

        model.save_pretrained = types.MethodType(save_pretrained, model)
