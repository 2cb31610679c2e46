"""What does a model of the lab say of itself? Its training's log, and a card with the command that makes it again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.common.files import whole_lines, write_durably

if TYPE_CHECKING:
    from selfaug.lab.model import Making

__all__ = ["CARD", "LOG", "Journal", "card", "command"]

LOG = "training.jsonl"
CARD = "README.md"


class Journal:
    """The log of a training in a file: what a killed training measured twice stands there once."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, entry: Mapping[str, Any]) -> None:
        """Append what was measured; ``entry`` has a ``step``."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def entries(self) -> list[dict[str, Any]]:
        """What was measured by step; the last word on a step counts."""
        found: dict[int, dict[str, Any]] = {}
        for entry in whole_lines(self._path):
            found.setdefault(entry["step"], {}).update(entry)
        return [found[step] for step in sorted(found)]

    def close(self) -> list[dict[str, Any]]:
        """Write each step once, and give all of them."""
        entries = self.entries()
        write_durably(self._path, "".join(json.dumps(entry) + "\n" for entry in entries))
        return entries


def command(making: Making) -> str:
    """The command that makes a model again; what is a default stands there too, for defaults may change."""
    flags = ("size", "steps", "tokens", "learning_rate", "seed", "threads", "precision")
    return " ".join(["selfaug lab make --output_dir FOLDER", *(f"--{name} {getattr(making, name)}" for name in flags)])


def card(making: Making, digest: str, parameters: int, entries: Sequence[Mapping[str, Any]]) -> str:
    """The model card, as Markdown."""
    settings = "\n".join(f"| {field.name} | {getattr(making, field.name)} |" for field in fields(making))
    probes = [entry for entry in entries if "facts" in entry]
    skills = [name for name in probes[-1] if name not in _OF_A_STEP] if probes else []
    rows = [" | ".join([str(p["step"]), *(f"{p[name]:.2f}" for name in skills)]) for p in probes]
    made = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "tokenizers"))
    table = "\n".join(
        ["| step | " + " | ".join(skills) + " |", "|---" * (len(skills) + 1) + "|", *(f"| {r} |" for r in rows)]
    )
    return f"""---
library_name: transformers
tags: [selfaug, lab]
---

# selfaug lab, {making.size}

A Qwen2 of {parameters / 1e6:.2f} million parameters for tests, demos and studies of forgetting. It knows the lab's
fictional world and seven general skills, and nothing else. All of its training data is made by code, in English of a
few hundred words. It is of no use outside the lab.

```bash
{command(making)}
```

makes it again, to the bit on a CPU of the same kind with the same versions ({made}). sha256 over the
weights' names and bytes: `{digest}`.

| setting | value |
|---|---|
{settings}
{_PROBED + table + chr(10) if probes else ""}"""


_OF_A_STEP = ("step", "loss", "seconds", "tokens_per_second")
_PROBED = """
Share of 100 test items of each skill answered rightly, on the way:

"""
