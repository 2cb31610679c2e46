"""The filter of other libraries' output while a verb runs: bars and warnings are dropped, except those that matter.

It covers the whole process and those that it starts. ``--verbose`` (or ``SELFAUG_VERBOSE=1``) shows everything; errors
and exceptions are always shown. In Python (`SelfAugTrainer` in a script) nothing is filtered.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TextIO

from selfaug.common.terminal import is_main, muted, say, warn

__all__ = [
    "FLAG", "LET_THROUGH", "Topic", "is_verbose", "libraries_muted", "matters", "quieten", "raised", "several_machines",
    "take_verbose", "unwarned",
]  # fmt: skip

_VARIABLE = "SELFAUG_VERBOSE"
FLAG = "--verbose"


class Topic(NamedTuple):
    """A kind of warning that is shown."""

    pattern: str
    why: str


LET_THROUGH: tuple[Topic, ...] = (
    Topic(
        r"newly initialized|not initialized from|(?-i:MISSING|UNEXPECTED|MISMATCH)|(missing|unexpected)( adapter)? keys"
        r"|reinitiali[sz]|corrupt",
        "weights of the model or of the adapter are not those of its files",
    ),
    Topic(r"\b(nan|inf)s?\b|non-?finite|overflow|diverg", "non-finite numbers"),
    Topic(
        r"(gpu|cuda|rocm|driver|nccl|gloo|device).*(not compatible|too old|(un|not )available|without|fail|mismatch)"
        r"|(not compatible|too old|without|fail).*(gpu|cuda|rocm|driver|nccl|gloo)|cuda initialization|out of memory",
        "the device or its driver is not used, or not fully",
    ),
    Topic(
        r"not installed|fall(s|ing)? back|fast path|do not have .* installed",
        "a slower path that a package would avoid",
    ),
    Topic(r"contaminat|attend to each other|cross.?document", "rows of a batch see each other"),
    Topic(
        r"(target_modules|target_parameters|exclude_modules|_pattern\b|modules_to_save|config|argument|setting|specified)"
        r".*(ignored|no effect|not match|did not match|no module|no parameter|no modules were)",
        "a setting without effect",
    ),
    Topic(r"tie_word_embeddings|\bmerg(e|es|ed|ing)\b", "merging or saving may not keep what was trained"),
    Topic(r"resum(e|ed|ing)|best (checkpoint|model)|not be saved correctly", "a run does not resume as it was"),
    Topic(
        r"retrying|timed? ?out|connection (error|reset|aborted|refused)|rate.?limited|http (429|5\d\d)|no space left",
        "waiting for the network or the disk",
    ),
)
"""Topics of warnings that are shown, each with the reason; everything else below an error is dropped."""

_MATTERS = re.compile("|".join(f"(?:{topic.pattern})" for topic in LET_THROUGH), re.IGNORECASE | re.DOTALL)
# Warnings that address the library's developers do not matter to the user, whatever their topic.
_FOR_DEVELOPERS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)

# The libraries read these when they are imported, in this process and those that it starts. The hub's own variable is
# left alone: only its bars show how long a download takes, and they appear on terminals only.
_ENVIRONMENT = {
    "TQDM_DISABLE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}
_NATIVE = "TORCH_CPP_LOG_LEVEL"


def matters(message: str) -> bool:
    """Return whether a library's warning has one of the topics of :data:`LET_THROUGH`."""
    return _MATTERS.search(message) is not None


def is_verbose() -> bool:
    """Return whether the user wants to see all output of libraries."""
    return os.environ.get(_VARIABLE, "").lower() not in ("", "0", "false")


def take_verbose(words: Sequence[str]) -> list[str]:
    """Return the words of a command line without ``--verbose``, which is set in the environment for child processes."""
    kept = [word for word in words if word != FLAG]
    if len(kept) < len(words):
        os.environ[_VARIABLE] = "1"
    return kept


def quieten() -> None:
    """Silence libraries that are imported from now on, and show the package's log as messages; may be called twice."""
    own = logging.getLogger("selfaug")
    if not any(isinstance(handler, _OwnHandler) for handler in own.handlers):
        own.addHandler(_OwnHandler())
    if is_verbose():
        own.setLevel(logging.INFO)
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # With several machines, PyTorch's native log names the one that the others wait for.
    if os.environ.get("WORLD_SIZE", "1") == os.environ.get("LOCAL_WORLD_SIZE", "1"):
        os.environ.setdefault(_NATIVE, "ERROR")
    logging.setLoggerClass(_Logger)
    if not sys.warnoptions:  # `python -W` and PYTHONWARNINGS are the user's own choice
        warnings.showwarning = _show_warning


def several_machines() -> None:
    """Show PyTorch's native log again in child processes, since it reports on machines that wait for each other."""
    os.environ.pop(_NATIVE, None)


@contextmanager
def libraries_muted() -> Iterator[None]:
    """Drop what a library prints while the block runs, unless the user wants to see it."""
    if is_verbose():
        yield
    else:
        with muted():
            yield


@contextmanager
def unwarned(pattern: str = "") -> Iterator[None]:
    """Drop Python's warnings while the block runs: all, or those that begin with a pattern; for what we handle."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=pattern)
        yield


@contextmanager
def raised(pattern: str) -> Iterator[None]:
    """Raise Python's warnings that begin with a pattern, as the errors that they are to us, while the block runs."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=pattern)
        yield


class _Logger(logging.getLoggerClass()):  # type: ignore[misc]
    """A logger that drops warnings that do not matter; handlers cannot do it, since libraries bring their own."""

    def filter(self, record: logging.LogRecord) -> Any:
        # A level below WARNING was set by the user, as with `--log_level info`, who then wants everything.
        wants_all = self.getEffectiveLevel() < logging.WARNING
        if record.levelno == logging.WARNING and not wants_all and record.name.partition(".")[0] != "selfaug":
            try:
                message = record.getMessage()
            except (TypeError, ValueError):  # a wrong format string, which the library's handler will report
                message = str(record.msg)
            if not is_main() or not matters(message):
                return False
        return super().filter(record)


class _OwnHandler(logging.Handler):
    """A handler that shows the package's own log as messages."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            warn(record.getMessage())
        else:
            say(record.getMessage())


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if file is not None:
        file.write(warnings.formatwarning(message, category, filename, lineno, line))
    elif not issubclass(category, _FOR_DEVELOPERS) and matters(str(message)):
        warn(" ".join(str(message).split()))
