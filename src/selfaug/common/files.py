"""Text files: reading files that a user named, with errors that say why not, and writing files atomically."""

from __future__ import annotations

import codecs
import contextlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfaug.common.errors import ConfigError, DataError, UserError, nearest, tidy

__all__ = [
    "flush", "json_lines", "json_of_ours", "missing_path", "read_json", "read_text", "read_yaml", "replacing",
    "whole_lines", "write_durably",
]  # fmt: skip

logger = logging.getLogger(__name__)


def missing_path(setting: str, name: str, hint: str, error: type[UserError] = ConfigError) -> UserError:
    """Return the error for a path that does not exist, with a similar name or the part of the path that exists."""
    path = Path(name).expanduser()
    parent = path.parent
    message = f"{setting} {name!r} does not exist"
    if parent.is_dir():
        return error(f"{message}.{nearest(path.name, [entry.name for entry in parent.iterdir()])}", hint)
    while not parent.exists():
        parent = parent.parent
    return error(f"{message}: of its path only {str(parent)!r} does", hint)


def read_text(path: str | Path, what: str = "", *, hint: str = "", error: type[UserError] = DataError) -> str:
    """Return the text of a UTF-8 file, without its byte order mark and with line feeds at the ends of lines.

    Args:
        path: Path of the file; ``~`` is the home folder.
        what: Setting or file that the message begins with.
        hint: Hint of the error; by default it depends on the cause.
        error: Type of the error.

    Raises:
        UserError: If the file is missing, is a folder, may not be read or is no UTF-8 text; of type ``error``.
    """
    with _ReadErrors(path, what, hint, error):
        text = Path(path).expanduser().read_bytes().removeprefix(codecs.BOM_UTF8).decode()
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | Path, what: str = "", *, hint: str = "", error: type[UserError] = DataError) -> Any:
    """Return the content of a JSON file; arguments and errors are those of :func:`read_text`.

    Raises:
        UserError: Also if the file is no JSON; the message names the line.
    """
    text = read_text(path, what, hint=hint, error=error)
    with _ReadErrors(path, what, hint, error):
        return json.loads(text)


def json_lines(
    path: str | Path, what: str = "", *, hint: str = "", error: type[UserError] = DataError
) -> Iterator[tuple[int, Any]]:
    """Yield number (from 1) and value of each non-blank line of a JSONL file; arguments are those of :func:`read_text`.

    Raises:
        UserError: Also if a line is no JSON.
    """
    with _ReadErrors(path, what, hint, error) as errors, Path(path).expanduser().open("rb") as file:
        for number, raw in enumerate(file, start=1):
            errors.first = number
            line = raw.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode().strip()
            if line:
                yield number, json.loads(line)


def read_yaml(
    path: str | Path, what: str = "", *, hint: str = "", error: type[UserError] = ConfigError, loader: Any = None
) -> Any:
    """Return the content of a YAML file; arguments and errors are those of :func:`read_text`.

    ``loader`` is PyYAML's safe loader by default.

    Raises:
        UserError: Also if the file is no YAML; the message names the line.
    """
    import yaml

    text = read_text(path, what, hint=hint, error=error)
    with _ReadErrors(path, what, hint, error):
        return yaml.load(text, Loader=loader or yaml.SafeLoader)


@dataclass
class _ReadErrors:
    """A context that turns errors of reading into the user's; ``first`` is the number of the text's first line."""

    path: str | Path
    what: str
    hint: str
    error: type[UserError]
    first: int = 1

    def __enter__(self) -> _ReadErrors:
        return self

    def __exit__(self, kind: object, problem: BaseException | None, trace: object) -> None:
        line: int | None = None
        match problem:
            case FileNotFoundError() | NotADirectoryError():
                raise missing_path(
                    self.what or "the file", str(self.path), self.hint or "check the path.", self.error
                ) from None
            case IsADirectoryError():
                reason, hint = "it is a folder", "name a file."
            case OSError():
                reason, hint = problem.strerror or str(problem), "make it readable."
            case UnicodeDecodeError():
                line = problem.object.count(b"\n", 0, problem.start)
                reason, hint = f"byte 0x{problem.object[problem.start]:02x} is not UTF-8", "save it as UTF-8 text."
            case json.JSONDecodeError():
                line, reason = problem.lineno - 1, f"it is no JSON: {problem.msg} (column {problem.colno})"
                hint = "mend the file."
            case RecursionError():
                reason, hint = "it is nested too deeply", "mend the file."
            case ValueError():  # an impossible date, a number with too many digits
                reason, hint = tidy(problem), "mend the file."
            case Exception() if hasattr(problem, "problem_mark"):
                line = getattr(problem.problem_mark, "line", None)
                reason, hint = f"it is no YAML: {getattr(problem, 'problem', None) or tidy(problem)}", "mend the file."
            case _:
                return
        where = "" if line is None else f", line {self.first + line},"
        name = f"{self.what} {str(self.path)!r}".lstrip()
        raise self.error(f"{name}{where} cannot be read: {reason}", self.hint or hint) from None


def whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a log of ours, one a line, without lines that a kill cut; none without a file."""
    if not path.is_file():
        return
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


def json_of_ours(path: Path) -> Any:
    """Return the content of a JSON file that we wrote ourselves; ``None`` where it is missing or damaged.

    A damaged file is logged.
    """
    if not path.is_file():
        return None
    try:
        return read_json(path)
    except DataError as problem:
        logger.info("%s", problem.message)
        return None


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of entries, is on disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # folders cannot be opened on every system
        return
    try:
        os.fsync(descriptor)
    except OSError:  # nor flushed on every file system
        logger.debug("cannot flush %s", path)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yield a temporary path; the file that the block writes there replaces ``path`` at the end of the block.

    It is flushed to disk first, so that ``path`` is always either the old file or the new one.

    Args:
        path: Path of the file.
        shared: Whether several processes may write the file at the same time. If not, a temporary file that a kill left
            is overwritten the next time.

    Raises:
        OSError: If the file cannot be written; no temporary file is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp" if shared else f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)


def write_durably(path: Path, text: str, *, shared: bool = False) -> None:
    """Write a text file atomically: it is always either the old file or the new one.

    Raises:
        OSError: If the file cannot be written; no temporary file is left.
    """
    with replacing(path, shared=shared) as temporary:
        temporary.write_text(text, encoding="utf-8")
