"""Hashes of texts, files and tokenizers, and versions of packages, which identify the origin of a result."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PACKAGES", "file_hash", "files_of", "text_hash", "tokenizer_hash", "versions"]

PACKAGES = ("selfaug", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors", "tokenizers")


def text_hash(text: str | None) -> str | None:
    """Return ``sha256:`` and the hash of a text's UTF-8 bytes; ``None`` of ``None``."""
    return None if text is None else f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def file_hash(path: str | Path) -> str:
    """Return ``sha256:`` and the hash of a file's bytes."""
    path = Path(path)
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def files_of(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Return path, size in bytes and hash of each data file."""
    return [{"path": str(path), "bytes": path.stat().st_size, "hash": file_hash(path)} for path in paths]


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the hash of what decides token ids: the fast tokenizer's definition (else its vocabulary), special tokens.

    The truncation and padding that a fast tokenizer remembers from its last call are left out.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    definition = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    if backend is not None:
        definition = {key: value for key, value in definition.items() if key not in ("truncation", "padding")}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return str(text_hash(json.dumps([definition, special], sort_keys=True)))


def versions(*more: str) -> dict[str, str | None]:
    """Return the versions of Python, of ``PACKAGES`` and of ``more``; ``None`` for a package that is not installed."""
    installed: dict[str, str | None] = {"python": platform.python_version()}
    for package in (*PACKAGES, *more):
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = None
    return installed
