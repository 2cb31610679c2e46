"""The entry point of the command line: runs a verb, and reports user errors and signals."""

from __future__ import annotations

import codecs
import importlib.util
import io
import locale
import os
import signal
import sys
from collections.abc import Sequence
from typing import NamedTuple

from selfaug import __version__
from selfaug.cli.config import VERBOSE, Parser, read
from selfaug.common.errors import ConfigError, UserError, nearest
from selfaug.common.quiet import FLAG, quieten, take_verbose
from selfaug.common.redaction import redacted
from selfaug.common.terminal import coloured, say

__all__ = ["VERBS", "Verb", "main"]

USER_MISTAKE = 2
"""Exit code of an error that the user can correct."""

# Importable names of the packages that each extra installs.
EXTRAS = {
    "train": ("accelerate", "datasets", "jinja2", "regex", "rich", "scipy", "trl", "yaml"),
    "eval": ("lm_eval",),
    "report": ("jinja2", "matplotlib", "scipy", "yaml"),
}


class Verb(NamedTuple):
    """A verb of the command line.

    Attributes:
        module: Name of the verb's module.
        help: Line of the verb in the help.
        first: Message before the verb's module does its work; empty for none.
        extras: Extras of the package that the verb needs.
    """

    module: str
    help: str
    first: str = ""
    extras: tuple[str, ...] = ("train",)


# Modules are given by name and imported when their verb runs, so that `selfaug --help` does not import torch.
VERBS = {
    "train": Verb(
        "selfaug.cli.train", "fine-tune a model on RAG data and keep what it could already do", "loading the libraries"
    ),
    "prepare": Verb("selfaug.cli.prepare", "check and convert data, retrieve documents, hold out a split", "reading"),
    "cache": Verb(
        "selfaug.cli.cache",
        "write the base's hidden states once, so that training pays no reference pass",
        "loading the libraries",
    ),
    "evaluate": Verb(
        "selfaug.cli.evaluate", "measure what a run gained at its task and lost elsewhere", "loading the libraries"
    ),
    "shift": Verb(
        "selfaug.cli.shift",
        "measure how far a run moved the model's distribution, where and in which layers",
        "loading the libraries",
    ),
    "relate": Verb(
        "selfaug.cli.relate",
        "relate shift to forgetting over runs, with a coefficient and a picture",
        "reading the runs",
        ("report",),
    ),
    "compare": Verb(
        "selfaug.cli.compare",
        "train and measure several methods, and show them side by side",
        "loading the libraries",
        ("train", "report"),
    ),
    "tune": Verb(
        "selfaug.cli.tune",
        "find learning rate, alignment and scale that keep limits on forgetting, by short runs",
        "loading the libraries",
        ("train", "report"),
    ),
    "report": Verb(
        "selfaug.cli.report", "write one page on what runs gained, lost and cost", "reading the runs", ("report",)
    ),
    "gate": Verb(
        "selfaug.cli.gate",
        "pass or fail a run by what it gained and lost, for continuous integration",
        "reading the run",
        ("report",),
    ),
    "scale": Verb(
        "selfaug.cli.scale",
        "scale a trained LoRA down until it keeps limits on what was forgotten, without training",
        "loading the libraries",
        ("train", "report"),
    ),
    "demo": Verb(
        "selfaug.cli.demo",
        "see it on a small model that comes along: forgetting with LoRA and with SelfAug",
        "loading the libraries",
        ("train", "eval", "report"),
    ),
    "lab": Verb(
        "selfaug.cli.lab", "make the lab's model from nothing, or rows of its RAG task", "loading the libraries"
    ),
    "merge": Verb("selfaug.cli.merge", "fold a run's adapter into its base model", "loading the libraries"),
    "chat": Verb("selfaug.cli.chat", "talk to a run's model, with or without its adapter", "loading the libraries"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``selfaug VERB ...`` and return its exit code.

    The codes are 0 for success, 2 for an error that the user can correct (``error:``, blank line, ``hint:`` on stderr),
    130 and 143 for SIGINT and SIGTERM, 141 for a closed stdout. Any other exception is a bug and keeps its traceback.
    """
    if argv is None:
        _speak_utf8()
    for stream in (sys.stdout, sys.stderr):
        # Characters outside of the stream's encoding are written as JSON escapes, so that no output fails.
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
            stream.reconfigure(errors=_ESCAPING)
    # A notebook hands its matplotlib backend on to the commands that it starts, where it may be missing; pictures are
    # files here, and need none.
    os.environ.pop("MPLBACKEND", None)
    arguments = take_verbose(sys.argv[1:] if argv is None else argv)
    quieten()
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
    except UserError as error:
        if not error.said_elsewhere:
            _print_error(error)
        return USER_MISTAKE
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The interpreter flushes stdout again at exit, and would report the same error without this.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except SystemExit as stop:
        if isinstance(stop.code, int) or stop.code is None:
            return stop.code or 0  # argparse after --help or --version
        raise
    return code


def _speak_utf8() -> None:
    """Restart the process in Python's UTF-8 mode if the locale's encoding is not UTF-8.

    Data, templates and paths are UTF-8, but our libraries open some files with the locale's encoding. The mode cannot
    be switched on in a running process.
    """
    if os.name != "posix" or sys.flags.utf8_mode or not sys.orig_argv or not sys.executable:
        return
    if codecs.lookup(locale.getencoding()).name == "utf-8":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    pairs = (units[i : i + 2].hex() for i in range(0, len(units), 2))
    return "".join(f"\\u{pair}" for pair in pairs), error.end


_ESCAPING = "selfaug.escaped"
codecs.register_error(_ESCAPING, _escaped)


def _dispatch(arguments: list[str]) -> int:
    verb = arguments[0] if arguments else None
    if verb in VERBS:
        _check_extras(verb)
        module = importlib.import_module(VERBS[verb].module)
        call = read(module.COMMAND, arguments[1:])
        if VERBS[verb].first:
            # PyTorch and the libraries on it are imported next, which takes seconds, on a cold disk up to a minute.
            say(f"selfaug {verb}: {VERBS[verb].first} ...")
        return int(module.run(call))
    if verb is not None and not verb.startswith("-"):
        raise ConfigError(
            f"{verb!r} is not a verb of selfaug.{nearest(verb, VERBS)}",
            f"the verbs are {', '.join(VERBS)}; `selfaug VERB --help` explains one.",
        )
    parser = Parser(prog="selfaug", description="Fine-tune language models on RAG data without forgetting.")
    parser.add_argument("--version", action="version", version=f"selfaug {__version__}")
    parser.add_argument(FLAG, action="store_true", help=VERBOSE)
    subparsers = parser.add_subparsers(title="verbs", dest="verb", metavar="VERB")
    for name, entry in VERBS.items():
        subparsers.add_parser(name, help=entry.help)
    parser.parse_args(arguments)
    parser.print_help()
    return 0


def _check_extras(verb: str) -> None:
    missing = {
        extra: [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]
        for extra in VERBS[verb].extras
    }
    names = list(dict.fromkeys(name for extra in missing.values() for name in extra))
    if names:
        extras = ",".join(extra for extra, absent in missing.items() if absent)
        raise ConfigError(
            f"`selfaug {verb}` needs packages that are not installed: {', '.join(names)}.",
            f"pip install 'selfaug[{extras}]' (or selfaug[all], for every verb).",
        )


def _print_error(error: UserError) -> None:
    rank = os.environ.get("RANK", "0")
    where = "" if rank == "0" else f" (rank {rank})"
    red, cyan, plain = ("\033[1;31m", "\033[1;36m", "\033[0m") if coloured() else ("", "", "")
    sys.stderr.write(
        f"{red}error{where}:{plain} {redacted(error.message)}\n\n{cyan}hint:{plain} {redacted(error.hint)}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
