"""The files of a reference cache: the index with its key, the shards, and their seals.

``cache.json`` lists what the hidden states depend on (`CacheKey`) and the sequences of each shard; it is written first.
``shard-00000.safetensors`` holds the tensor ``hidden``: final hidden states at the aligned positions of its sequences,
one sequence after another. ``shard-00000.json``, its seal (size and hash), is written last. A shard without a seal, or
that differs from it, is incomplete and is written again.

Shapes: N aligned positions, H hidden.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfaug.common.errors import ConfigError
from selfaug.common.files import json_of_ours, read_json, replacing, write_durably
from selfaug.common.fingerprint import file_hash

__all__ = ["CACHE_DTYPES", "INDEX", "UNKNOWN", "CacheIndex", "CacheKey", "Shard", "gigabytes", "require_room"]

INDEX = "cache.json"
SCHEMA = 1
UNKNOWN = "not loaded here"
"""Value in place of a hash on a rank that holds no weights."""
CACHE_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name) for name in ("bfloat16", "float16", "float32", "float64")
}

# The consequence of a difference, by the field of the key that differs.
_WHY = {
    "tokenizer": "other token ids, so other hidden states",
    "chat_template": "prompts are written differently",
    "weights": "the hidden states are another model's",
    "config": "the same weights compute something else",
    "align_boundary": "other positions are aligned",
    "precision": "the model computes in another number format",
}


@dataclass(frozen=True)
class CacheKey:
    """Everything that the hidden states depend on besides the sequences themselves.

    Args:
        tokenizer: Hash of the tokenizer.
        chat_template: Hash of the chat template; ``None`` without one.
        weights: Exact checksum of the base weights, their names, shapes and dtypes.
        config: Hash of the model settings that change its outputs.
        align_boundary: Whether the last prompt position is aligned.
        precision: Mixed precision of the pass (``no``, ``bf16``, ``fp16``).
    """

    tokenizer: str
    chat_template: str | None
    weights: str
    config: str
    align_boundary: bool
    precision: str

    def check(self, stored: Mapping[str, Any], folder: Path) -> None:
        """Refuse a cache with another key.

        Raises:
            ConfigError: If a field differs, with its name and both values.
        """
        for name, now in asdict(self).items():
            if stored.get(name) != now and now != UNKNOWN:
                raise ConfigError(
                    f"the reference cache in {folder} was made with another {name} ({stored.get(name)} stored, {now} "
                    f"now): {_WHY[name]}.",
                    f"restore the {name} that it was made with, or name an empty folder with --reference_cache.",
                )


@dataclass(frozen=True)
class Shard:
    """One shard of a cache: the key of each of its sequences and the number of its aligned positions."""

    name: str
    sequences: tuple[tuple[str, int], ...]

    @property
    def rows(self) -> int:
        """Number of rows of its tensor."""
        return sum(count for _, count in self.sequences)

    def path(self, folder: Path) -> Path:
        """Return the path of its file."""
        return folder / f"{self.name}.safetensors"

    def is_sealed(self, folder: Path, *, thorough: bool = False) -> bool:
        """Whether the shard is complete; with ``thorough``, its hash is compared with the seal as well."""
        path = self.path(folder)
        seal = json_of_ours(folder / f"{self.name}.json")
        if not isinstance(seal, dict) or seal.get("rows") != self.rows or not path.is_file():
            return False
        return seal.get("bytes") == path.stat().st_size and (not thorough or seal.get("hash") == file_hash(path))

    def write(self, folder: Path, hidden_NH: Tensor) -> None:
        """Write and seal the shard; if killed at any moment, it is either complete or recognised as incomplete."""
        from safetensors.torch import save_file

        assert len(hidden_NH) == self.rows
        with replacing(self.path(folder)) as temporary:
            save_file({"hidden": hidden_NH.contiguous()}, temporary)
            seal = {"bytes": temporary.stat().st_size, "rows": self.rows, "hash": file_hash(temporary)}
            (folder / f"{self.name}.json").unlink(missing_ok=True)
        write_durably(folder / f"{self.name}.json", json.dumps(seal))


@dataclass(frozen=True)
class CacheIndex:
    """The content of ``cache.json``.

    Args:
        key: Fields of the :class:`CacheKey`.
        hidden: Size H of a hidden state.
        dtype: Dtype of the hidden states, a key of ``CACHE_DTYPES``.
        shards: Shards in order.
        versions: Versions of the packages that wrote the cache, for information.
    """

    key: Mapping[str, Any]
    hidden: int
    dtype: str
    shards: tuple[Shard, ...]
    versions: Mapping[str, Any]

    @classmethod
    def plan(
        cls,
        key: CacheKey,
        sequences: Sequence[tuple[str, int]],
        *,
        hidden: int,
        dtype: str,
        shard_bytes: int,
        versions: Mapping[str, Any],
    ) -> CacheIndex:
        """Distribute sequences (key, number of aligned positions) in order over shards of up to ``shard_bytes``."""
        room = max(1, shard_bytes // (hidden * CACHE_DTYPES[dtype].itemsize))
        parts: list[list[tuple[str, int]]] = [[]]
        filled = 0
        for entry in sequences:
            if parts[-1] and filled + entry[1] > room:
                parts.append([])
                filled = 0
            parts[-1].append(entry)
            filled += entry[1]
        shards = tuple(Shard(f"shard-{i:05d}", tuple(part)) for i, part in enumerate(parts) if part)
        return cls(asdict(key), hidden, dtype, shards, versions)

    @classmethod
    def read(cls, folder: Path) -> CacheIndex | None:
        """Return the index of a folder, or ``None`` where it has none.

        Raises:
            ConfigError: If it cannot be read, or was written by another version of selfaug.
        """
        path = folder / INDEX
        if not path.is_file():
            return None
        again = "name an empty folder with --reference_cache, or remove this one."
        body = read_json(path, hint=again, error=ConfigError)
        try:
            if body["schema"] != SCHEMA:
                raise ValueError(f"its schema is {body['schema']}, and this version reads {SCHEMA}")
            shards = tuple(Shard(name, tuple((k, n) for k, n in entries)) for name, entries in body["shards"])
            return cls(body["key"], body["hidden"], body["dtype"], shards, body["versions"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} cannot be read: {error}", again) from None

    def write(self, folder: Path) -> None:
        """Write the index, whole or not at all."""
        shards = [[shard.name, shard.sequences] for shard in self.shards]
        body = {**asdict(self), "schema": SCHEMA, "shards": shards}
        write_durably(folder / INDEX, json.dumps(body))

    def bytes_of(self, shards: Sequence[Shard]) -> int:
        """Return the bytes of the hidden states in some shards."""
        return sum(shard.rows for shard in shards) * self.hidden * CACHE_DTYPES[self.dtype].itemsize


def gigabytes(count: float) -> str:
    """Format a number of bytes."""
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"


def require_room(folder: Path, needed: int) -> None:
    """Check that the disk of ``folder`` has ``needed`` bytes free.

    Raises:
        ConfigError: If it has not.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"reference_cache={str(folder)!r} needs {gigabytes(needed)} more, and its disk has {gigabytes(free)} free.",
            "name a folder on a larger disk, store --cache_dtype bfloat16, or train without a cache.",
        )
