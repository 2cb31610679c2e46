"""Several trainings in a host's environment, in one process, since importing a host takes longest.

    PYTHON tests/hosts/inside.py ms_swift < CASES

CASES is JSON, a list of cases: ``words`` of the host's command line, ``planted`` mistake, ``variables`` of the
environment, and the ``record`` of its step. Prints one line of JSON: what each case raised, or nothing.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from typing import Any
from unittest import mock


def ms_swift(words: list[str]) -> str:
    from swift.pipelines import sft_main

    try:
        sft_main(words)
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def llama_factory(words: list[str]) -> str:
    from selfaug.plugins.llama_factory import main

    with redirect_stderr(io.StringIO()) as said:
        code = main(["train", *words])
    return said.getvalue() if code else ""


def axolotl(words: list[str]) -> str:
    os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"
    from axolotl.cli.train import do_cli

    do_cli(words[0])
    return ""


HOSTS: dict[str, Callable[[list[str]], str]] = {
    "axolotl": axolotl, "ms_swift": ms_swift, "llama_factory": llama_factory,
}  # fmt: skip


def main() -> None:
    from tests.hosts.recorder import planted  # not above: processes that a host spawns import this file

    run = HOSTS[sys.argv[1]]  # a host may change the words of the command line
    said: list[str] = []
    for case in json.load(sys.stdin):
        variables = {"STEP_RECORD": case["record"], **case.get("variables", {})}
        with mock.patch.dict(os.environ, variables), planted(case.get("planted")), redirect_stdout(sys.stderr):
            said.append(run_one(run, case))
    print(json.dumps(said))


def run_one(run: Callable[[list[str]], str], case: dict[str, Any]) -> str:
    try:
        return run(case["words"])
    except Exception as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()
