"""The training log and the model card of a lab model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.common.files import whole_lines, write_durably

if TYPE_CHECKING:
    from selfaug.lab.making import Making

__all__ = ["CARD", "LOG", "Journal", "card", "command"]

LOG = "training.jsonl"
CARD = "README.md"


class Journal:
    """The log of a training in a file, with one entry for each step even where a resumed training logged it twice."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, entry: Mapping[str, Any]) -> None:
        """Append an entry, which has a ``step``."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def entries(self) -> list[dict[str, Any]]:
        """Return one entry for each step; later values replace earlier ones."""
        by_step: dict[int, dict[str, Any]] = {}
        for entry in whole_lines(self._path):
            by_step.setdefault(entry["step"], {}).update(entry)
        return [by_step[step] for step in sorted(by_step)]

    def close(self) -> list[dict[str, Any]]:
        """Rewrite the file with one entry for each step, and return the entries."""
        entries = self.entries()
        write_durably(self._path, "".join(json.dumps(entry) + "\n" for entry in entries))
        return entries


def command(making: Making) -> str:
    """Return the command that makes a model, defaults included, since these may change."""
    flags = ("size", "steps", "tokens", "learning_rate", "seed", "threads", "precision")
    return " ".join(["selfaug lab make --output_dir FOLDER", *(f"--{name} {getattr(making, name)}" for name in flags)])


def card(making: Making, digest: str, parameters: int, entries: Sequence[Mapping[str, Any]]) -> str:
    """Return the model card in Markdown."""
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
