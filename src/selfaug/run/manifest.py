"""The manifest: the data, template, tokenizer, weights, settings and versions that made a run."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.common.errors import ConfigError
from selfaug.common.files import read_json, write_durably
from selfaug.common.fingerprint import text_hash, tokenizer_hash, versions
from selfaug.common.redaction import redacted, without_secrets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "build_manifest", "config_hash", "device", "differences", "git_state", "read_manifest", "write_manifest",
]  # fmt: skip

SCHEMA = 1
VOLATILE = frozenset({"created", "command", "resumed", "finished", "device", "git"})
"""Entries of a manifest that differ between two runs of the same experiment."""
DESCRIBING = frozenset({"bad_rows_by_reason"})
"""Keys inside an entry that only describe what its hashes determine; older manifests may lack them."""


def config_hash(config: Mapping[str, Any]) -> str:
    """Return the hash of settings, independent of their order."""
    return str(text_hash(json.dumps(config, sort_keys=True, default=str)))


def git_state(folder: str | Path) -> dict[str, Any] | None:
    """Return the commit of ``folder``'s repository, and whether it has uncommitted changes; ``None`` outside git."""

    def ask(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "changed": bool(ask("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def device() -> dict[str, Any]:
    """Return the hardware of the run: system, cores, accelerators, number of processes."""
    import torch

    facts: dict[str, Any] = {
        "system": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "accelerators": [],
    }
    if torch.cuda.is_available():
        facts["cuda"] = torch.version.cuda
        facts["accelerators"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return facts


def build_manifest(
    *,
    command: Sequence[str],
    config: Mapping[str, Any],
    data: Mapping[str, Any],
    model: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    seeds: Mapping[str, int],
    **more: Any,
) -> dict[str, Any]:
    """Return the manifest of a run: everything that could explain why two runs differ.

    Args:
        command: Words of the command line; secrets are hidden.
        config: Resolved settings.
        data: Files with hashes, number of rows and format of each split.
        model: Name, revision and hash of the base weights.
        tokenizer: Tokenizer, hashed with its chat template.
        seeds: Seeds by name.
        more: Further entries, such as the length report.
    """
    template = tokenizer.chat_template
    return {
        "schema": SCHEMA,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": without_secrets(command),
        "config": config_hash(config),
        "data": redacted(dict(data)),
        "model": redacted(dict(model)),
        "tokenizer": tokenizer_hash(tokenizer),
        "chat_template": text_hash(template if isinstance(template, str) or template is None else json.dumps(template)),
        "seeds": dict(seeds),
        "versions": versions(),
        "device": device(),
        "git": git_state(Path.cwd()),
        **more,
    }


def write_manifest(path: str | Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest atomically, as indented JSON."""
    path = Path(path)
    write_durably(path, json.dumps(manifest, indent=2, ensure_ascii=False, default=str) + "\n")


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Read a manifest.

    Raises:
        ConfigError: If the file is missing, is not JSON, or was written by a newer selfaug.
    """
    path = Path(path)
    manifest = read_json(path, hint="restore the file, or train anew.", error=ConfigError)
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise ConfigError(f"{path} is not a manifest of schema {SCHEMA}", "update selfaug, or train anew.")
    return manifest


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return ``{dotted name: (old, new)}`` of the leaves that differ, except ``VOLATILE`` and ``DESCRIBING`` ones."""
    flat_old, flat_new = (dict(_leaves(manifest)) for manifest in (old, new))
    names = sorted(flat_old.keys() | flat_new.keys())
    return {
        name: (flat_old.get(name), flat_new.get(name)) for name in names if flat_old.get(name) != flat_new.get(name)
    }


def _leaves(value: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            if key not in (DESCRIBING if name else VOLATILE):
                yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)) and value:
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{name}.{index}")
    else:
        yield name, value
