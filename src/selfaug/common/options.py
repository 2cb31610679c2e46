"""One option: a field of a data class that says its default and its help, for the command line, YAML and Python."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["REQUIRED", "option"]

REQUIRED: Any = dataclasses.MISSING
"""The default of an option that must be given."""


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
) -> Any:
    """A field of a data class of options; its type hint says what the option holds.

    Args:
        default: The default, or :data:`REQUIRED`. It is added to the help, and so not written there.
        help: What the option means, as argparse formats it: a percent sign is written twice.
        group: Title of a group of the help that begins here; ``None`` for that of the field above, or ``GROUP`` of the
            class.
        metavar: Placeholder of the value in the help.
        choices: The values taken.
        shown: What the help says instead of the default, such as what an option that is not given follows.
        type: The function that reads a typed value, where the type hint does not say it.
        const: The value of the flag without a value.
        positional: Whether it is typed by its place, without a flag.
        repeated: Whether a list is typed one value a flag, each with the flag before it.
    """
    given = {
        "help": help, "group": group, "metavar": metavar, "choices": choices, "shown": shown, "type": type,
        "const": const, "positional": positional or None, "repeated": repeated or None,
    }  # fmt: skip
    metadata = {name: value for name, value in given.items() if value is not None}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
