"""The weight files of a model: where they lie on this machine, and their hash.

The prefix of a hash names its kind: ``sha256:`` covers every byte; ``sampled-sha256:`` (base weights, unless the full
hash is requested) covers each weight file's name, size and header, and 64 blocks of 4 KiB spread evenly over the file.
It saves reading a model of 70 billion parameters a second time, and still detects another training run, quantisation or
conversion, which change bytes all over a file. It does not prove that no byte was altered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from selfaug.common.fingerprint import file_hash

__all__ = ["model_folder", "model_hash", "weight_files", "weights_hash"]

_BLOCKS, _BLOCK = 64, 4096


def model_folder(name: str, revision: str = "main") -> Path | None:
    """Return the local folder of a model's files, or ``None`` where they are not downloaded."""
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def model_hash(name: str, revision: str = "main", *, full: bool = False) -> str | None:
    """Return the hash of a model's weight files; ``None`` where they are not on this machine."""
    folder = model_folder(name, revision)
    files = weight_files(folder) if folder is not None else []
    return weights_hash(files, full=full) if files else None


def weight_files(folder: str | Path) -> list[Path]:
    """Return the weight files of a model folder, safetensors before older formats; empty where there are none."""
    folder = Path(folder)
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        files = sorted(folder.glob(pattern))
        if files:
            return files
    return []


def weights_hash(files: Sequence[Path], *, full: bool = False) -> str:
    """Return the hash of weight files, in the order of their names; the module's docstring says what it covers.

    Args:
        files: Weight files; their folder does not enter the hash.
        full: Whether every byte is read.
    """
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda file: file.name):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        if full:
            digest.update(file_hash(path).encode())
            continue
        with path.open("rb") as file:
            if path.suffix == ".safetensors":
                # Eight bytes hold the length of the header, which names every tensor, its type and shape.
                length = file.read(8)
                digest.update(length + file.read(min(int.from_bytes(length, "little"), size)))
            for block in range(_BLOCKS):
                file.seek(max(0, size - _BLOCK) * block // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return f"{'sha256' if full else 'sampled-sha256'}:{digest.hexdigest()}"
