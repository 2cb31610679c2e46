"""The definition of options as fields of a data class, with default and help, for command line, YAML and Python."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["REQUIRED", "option"]

REQUIRED: Any = dataclasses.MISSING
"""Default of an option that must be given."""


def option(
    default: Any,
    help: str,  # noqa: A002 - argparse's own name
    *,
    group: str | None = None,
    metavar: str | None = None,
    choices: Sequence[str] | None = None,
    shown: str | None = None,
    type: Callable[[str], Any] | None = None,  # noqa: A002 - argparse's own name
    const: Any = None,
    positional: bool = False,
    repeated: bool = False,
    earlier: Sequence[str] = (),
) -> Any:
    """Define a field of a data class of options; its type hint is the type of the option.

    Args:
        default: Default, or :data:`REQUIRED`. It is appended to the help, so the text need not name it.
        help: Help text, as argparse formats it: a percent sign is written twice.
        group: Title of the help's group that begins here; ``None`` for that of the field above, or ``GROUP`` of the
            class.
        metavar: Placeholder of the value in the help.
        choices: Allowed values.
        shown: Text that the help shows in place of the default, such as the source of the value.
        type: Function that parses a typed value, where the type hint is not enough.
        const: Value of the flag where none follows it.
        positional: Whether the option is a positional argument, without a flag.
        repeated: Whether a list is typed with the flag before each value.
        earlier: Names that it had before, which still work (docs/renames.md).
    """
    given = {
        "help": help, "group": group, "metavar": metavar, "choices": choices, "shown": shown, "type": type,
        "const": const, "positional": positional or None, "repeated": repeated or None, "earlier": earlier or None,
    }  # fmt: skip
    metadata = {name: value for name, value in given.items() if value is not None}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
