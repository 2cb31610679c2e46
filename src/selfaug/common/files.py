"""Text files: reading one that a user named, or saying why not, and writing a file whole or not at all."""

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
    """Return the error for a path that does not exist, with its near neighbour and the part of it that does exist."""
    path = Path(name).expanduser()
    parent = path.parent
    said = f"{setting} {name!r} does not exist"
    if parent.is_dir():
        return error(f"{said}.{nearest(path.name, [entry.name for entry in parent.iterdir()])}", hint)
    while not parent.exists():
        parent = parent.parent
    return error(f"{said}: of its path only {str(parent)!r} does", hint)


def read_text(path: str | Path, what: str = "", *, hint: str = "", error: type[UserError] = DataError) -> str:
    """Return the text of a UTF-8 file, without its byte order mark and with line feeds at the ends of lines.

    Args:
        path: The file; ``~`` is the home folder.
        what: The setting or file that the message begins with.
        hint: What to do, whatever is wrong; by default it depends on what is.
        error: The kind of error.

    Raises:
        UserError: Of that kind, if the file is missing, is a folder, may not be read or is no UTF-8 text.
    """
    with _Told(path, what, hint, error):
        text = Path(path).expanduser().read_bytes().removeprefix(codecs.BOM_UTF8).decode()
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | Path, what: str = "", *, hint: str = "", error: type[UserError] = DataError) -> Any:
    """Return what a JSON file holds; arguments and errors are those of :func:`read_text`.

    Raises:
        UserError: Also if the file is no JSON; with the line.
    """
    text = read_text(path, what, hint=hint, error=error)
    with _Told(path, what, hint, error):
        return json.loads(text)


def json_lines(
    path: str | Path, what: str = "", *, hint: str = "", error: type[UserError] = DataError
) -> Iterator[tuple[int, Any]]:
    """Yield number (from 1) and value of each line of a JSONL file; arguments and errors as of :func:`read_text`.

    Blank lines are passed over.

    Raises:
        UserError: Also if a line is no JSON.
    """
    with _Told(path, what, hint, error) as told, Path(path).expanduser().open("rb") as file:
        for number, raw in enumerate(file, start=1):
            told.first = number
            line = raw.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode().strip()
            if line:
                yield number, json.loads(line)


def read_yaml(
    path: str | Path, what: str = "", *, hint: str = "", error: type[UserError] = ConfigError, loader: Any = None
) -> Any:
    """Return what a YAML file holds; arguments and errors are those of :func:`read_text`.

    ``loader`` is PyYAML's safe one where none is given.

    Raises:
        UserError: Also if the file is no YAML; with the line.
    """
    import yaml

    text = read_text(path, what, hint=hint, error=error)
    with _Told(path, what, hint, error):
        return yaml.load(text, Loader=loader or yaml.SafeLoader)


@dataclass
class _Told:
    """A block whose errors are told as the user's; arguments as of :func:`read_text`, ``first`` its first line."""

    path: str | Path
    what: str
    hint: str
    error: type[UserError]
    first: int = 1

    def __enter__(self) -> _Told:
        return self

    def __exit__(self, kind: object, problem: BaseException | None, trace: object) -> None:
        line: int | None = None
        match problem:
            case FileNotFoundError() | NotADirectoryError():
                raise missing_path(
                    self.what or "the file", str(self.path), self.hint or "check the path.", self.error
                ) from None
            case IsADirectoryError():
                said, hint = "it is a folder", "name a file."
            case OSError():
                said, hint = problem.strerror or str(problem), "make it readable."
            case UnicodeDecodeError():
                line = problem.object.count(b"\n", 0, problem.start)
                said, hint = f"byte 0x{problem.object[problem.start]:02x} is not UTF-8", "save it as UTF-8 text."
            case json.JSONDecodeError():
                line, said = problem.lineno - 1, f"it is no JSON: {problem.msg} (column {problem.colno})"
                hint = "mend the file."
            case RecursionError():
                said, hint = "it is nested too deeply", "mend the file."
            case ValueError():  # a date that there is not, a number of too many digits
                said, hint = tidy(problem), "mend the file."
            case Exception() if hasattr(problem, "problem_mark"):
                line = getattr(problem.problem_mark, "line", None)
                said, hint = f"it is no YAML: {getattr(problem, 'problem', None) or tidy(problem)}", "mend the file."
            case _:
                return
        where = "" if line is None else f", line {self.first + line},"
        name = f"{self.what} {str(self.path)!r}".lstrip()
        raise self.error(f"{name}{where} cannot be read: {said}", self.hint or hint) from None


def whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a log of ours, a line each, without what a kill tore; none where there is no file."""
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
    """Return what a JSON file holds that we wrote ourselves; ``None`` where it is missing or damaged, to be made anew.

    A damaged one is logged.
    """
    if not path.is_file():
        return None
    try:
        return read_json(path)
    except DataError as problem:
        logger.info("%s", problem.message)
        return None


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
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
    """Yield a path beside ``path``; the file that the block writes there takes the place of ``path`` at its end.

    It is on disk before it does, so that ``path`` is the old file or the new one, whatever happens in between.

    Args:
        path: The file.
        shared: Several processes may write it at the same time. Else what a kill leaves is overwritten the next time.

    Raises:
        OSError: If it cannot be written; nothing is left behind.
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
    """Write a text file that is either the old one or the new one, whatever happens in between.

    Raises:
        OSError: If it cannot be written; nothing is left behind.
    """
    with replacing(path, shared=shared) as temporary:
        temporary.write_text(text, encoding="utf-8")
