"""For each command line, a JSON list on stdin: what is first written to stderr, and which heavy modules are in by then.

Each runs in a fork of this process, which has imported nothing heavy, and ends with its first word.
"""

from __future__ import annotations

import json
import os
import sys

HEAVY = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "lm_eval", "numpy", "pandas", "pyarrow",
         "scipy", "matplotlib", "bm25s", "huggingface_hub", "rich", "jinja2")  # fmt: skip


class FirstWord:
    """Stands for stderr."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def write(self, text: str) -> int:
        heard = {"text": text, "heavy": sorted(set(HEAVY) & set(sys.modules))}
        os.write(self.pipe, json.dumps(heard).encode())
        os._exit(0)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


def first_word(argv: list[str]) -> dict | None:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        sys.stderr = FirstWord(write)  # type: ignore[assignment]
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        from selfaug.cli.main import main

        main(argv)
        os._exit(1)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(text) if text else None


if __name__ == "__main__":
    assert not set(HEAVY) & set(sys.modules)
    print(json.dumps([first_word(argv) for argv in json.loads(sys.stdin.read())]))
