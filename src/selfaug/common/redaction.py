"""The removal of credentials from everything that is written or printed.

A credential is recognised by its name (``hub_token``, ``OPENAI_API_KEY``, ``password``) or its form (``hf_...``,
``sk-...``, the password of a URL). Names that only resemble one (``max_new_tokens``, ``eos_token``) are not affected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["HIDDEN", "is_secret", "redacted", "without_secrets"]

HIDDEN = "***"

# Words that before "token" name no credential: tokens of a vocabulary, and counts or treatments of tokens.
_OF_VOCABULARY = frozenset(
    {
        "eos", "bos", "pad", "unk", "sep", "cls", "mask", "eot", "eom", "eod", "eor", "eoi", "eoa", "boi", "bor", "boa",
        "image", "img", "audio", "video", "start", "end", "stop", "begin", "first", "last", "next", "special", "extra",
        "added", "add", "decoder", "encoder", "prefix", "suffix", "middle", "think", "turn", "prompt", "answer",
        "assistant", "user", "system", "tool", "per", "split", "wise", "new", "max", "min",
    }
)  # fmt: skip
_NAMES = re.compile(
    r"(?:^|_)(?:api_?key|access_?key(?:_id)?|secret|secret_?key|private_?key|account_?key|password|passwd|passphrase|"
    r"credentials?|bearer|authorization)$"
)
_LOOKS = [
    re.compile(pattern)
    for pattern in (
        r"\bhf_[A-Za-z0-9]{16,}\b",
        r"\bsk-[A-Za-z0-9_-]{16,}",
        r"\bgh[pousr]_[A-Za-z0-9]{20,}\b",
        r"\bgithub_pat_[A-Za-z0-9_]{20,}\b",
        r"\bglpat-[A-Za-z0-9_-]{16,}",
        r"\bAKIA[0-9A-Z]{16}\b",
        r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
        r"\bAIza[0-9A-Za-z_-]{30,}",
    )
]
_IN_URL = re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/@'\"]*:[^\s/@'\"]*@")
_IN_QUERY = re.compile(r"([?&](\w+)=)([^\s&#'\"]+)")
_IN_HEADER = re.compile(r"(?i)\b(bearer\s+)[A-Za-z0-9._~+/=-]{12,}")


def is_secret(name: str) -> bool:
    """Return whether a setting or variable of this name holds a credential."""
    plain = name.lower().lstrip("-").replace("-", "_")
    if _NAMES.search(plain):
        return True
    before, underscore, last = plain.rpartition("_")
    if last != "token":
        return False
    return not underscore or not (before in _OF_VOCABULARY or before.rpartition("_")[2] in _OF_VOCABULARY)


def redacted(value: Any) -> Any:
    """Return ``value`` (JSON) with ``***`` in place of credentials, recognised by name or form."""
    if isinstance(value, str):
        for look in _LOOKS:
            value = look.sub(HIDDEN, value)
        value = _IN_URL.sub(rf"\1{HIDDEN}@", value)
        value = _IN_HEADER.sub(rf"\1{HIDDEN}", value)
        return _IN_QUERY.sub(lambda found: f"{found[1]}{HIDDEN}" if is_secret(found[2]) else found[0], value)
    if isinstance(value, Mapping):
        return {
            key: HIDDEN
            if isinstance(key, str) and is_secret(key) and isinstance(inner, str) and inner
            else redacted(inner)
            for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [redacted(inner) for inner in value]
    return value


def without_secrets(words: Sequence[str]) -> list[str]:
    """Return a command line with ``***`` in place of credentials."""
    kept: list[str] = []
    hide = False
    for word in words:
        name, equals, _ = word.partition("=")
        secret = name.startswith("--") and is_secret(name)
        kept.append(f"{name}={HIDDEN}" if secret and equals else HIDDEN if hide else redacted(word))
        hide = secret and not equals
    return kept
