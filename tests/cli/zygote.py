"""Runs `selfaug` command lines in processes of their own, with the slow imports paid for once.

Reads one JSON job a line (argv, cwd, env, stdout, stderr), forks, runs `main`, answers with the exit code. A child
differs from `python -m selfaug` only in what is imported already.
"""

from __future__ import annotations

import json
import os
import sys
import traceback


def child(job: dict) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        descriptor = os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
    os.chdir(job["cwd"])
    os.environ.update(job["env"])
    code = 1
    try:
        from selfaug.cli.main import main

        code = main(job["argv"])
    except BaseException:  # what the interpreter would do with it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    import selfaug.cli.parsing
    import selfaug.training.trainer  # noqa: F401

    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            child(job)
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
