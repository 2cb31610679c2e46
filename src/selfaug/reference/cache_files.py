"""What lies in a reference cache, is it whole, and was it made for this run?

``cache.json`` says what the hidden states depend on (`CacheKey`) and which sequences lie in which shard; it is written
first. ``shard-00000.safetensors`` holds the tensor ``hidden``: final hidden states at the aligned positions of its
sequences, one sequence after another. ``shard-00000.json``, its seal (size and hash), is written last: a shard without
one, or that differs from it, was torn and is written anew.

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
"""In place of a hash, on a rank that holds no weights."""
CACHE_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name) for name in ("bfloat16", "float16", "float32", "float64")
}

# What a difference means, by the name of what differs.
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
    """What the hidden states depend on besides the sequences themselves.

    Args:
        tokenizer: Hash.
        chat_template: Hash, or ``None``.
        weights: Exact checksum of the base weights, their names, shapes and number formats.
        config: Hash of the model's configuration without what does not change its outputs.
        align_boundary: Whether the last prompt position is among the aligned ones.
        precision: Mixed precision of the pass (``no``, ``bf16``, ``fp16``).
    """

    tokenizer: str
    chat_template: str | None
    weights: str
    config: str
    align_boundary: bool
    precision: str

    def check(self, stored: Mapping[str, Any], folder: Path) -> None:
        """Refuse a cache that was made with something else.

        Raises:
            ConfigError: Naming the first thing that differs, what was stored and what is now.
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
    """One file of a cache: its sequences' keys and how many aligned positions each has."""

    name: str
    sequences: tuple[tuple[str, int], ...]

    @property
    def rows(self) -> int:
        """N of its tensor."""
        return sum(count for _, count in self.sequences)

    def path(self, folder: Path) -> Path:
        """Of the file."""
        return folder / f"{self.name}.safetensors"

    def is_sealed(self, folder: Path, *, thorough: bool = False) -> bool:
        """Whether the shard was written to its end; with ``thorough`` every byte is compared with its seal."""
        path = self.path(folder)
        seal = json_of_ours(folder / f"{self.name}.json")
        if not isinstance(seal, dict) or seal.get("rows") != self.rows or not path.is_file():
            return False
        return seal.get("bytes") == path.stat().st_size and (not thorough or seal.get("hash") == file_hash(path))

    def write(self, folder: Path, hidden_NH: Tensor) -> None:
        """Write and seal it; killed at any moment, it is either whole or counts as torn."""
        from safetensors.torch import save_file

        assert len(hidden_NH) == self.rows
        with replacing(self.path(folder)) as temporary:
            save_file({"hidden": hidden_NH.contiguous()}, temporary)
            seal = {"bytes": temporary.stat().st_size, "rows": self.rows, "hash": file_hash(temporary)}
            (folder / f"{self.name}.json").unlink(missing_ok=True)
        write_durably(folder / f"{self.name}.json", json.dumps(seal))


@dataclass(frozen=True)
class CacheIndex:
    """``cache.json``.

    Args:
        key: As a mapping.
        hidden: H.
        dtype: Of the hidden states, a name of ``CACHE_DTYPES``.
        shards: In order.
        versions: Of the packages that wrote it; a note.
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
        """Distribute sequences (key, aligned positions) over shards of up to ``shard_bytes``, in their order."""
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
        """The index of a folder, or ``None`` where it has none.

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
        """Write it, whole or not at all."""
        shards = [[shard.name, shard.sequences] for shard in self.shards]
        body = {**asdict(self), "schema": SCHEMA, "shards": shards}
        write_durably(folder / INDEX, json.dumps(body))

    def bytes_of(self, shards: Sequence[Shard]) -> int:
        """Of hidden states in some shards."""
        return sum(shard.rows for shard in shards) * self.hidden * CACHE_DTYPES[self.dtype].itemsize


def gigabytes(count: float) -> str:
    """Bytes as people read them."""
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"


def require_room(folder: Path, needed: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        ConfigError: If the disk of ``folder`` has less free.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"reference_cache={str(folder)!r} needs {gigabytes(needed)} more, and its disk has {gigabytes(free)} free.",
            "name a folder on a larger disk, store --cache_dtype bfloat16, or train without a cache.",
        )
