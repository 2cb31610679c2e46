"""The options of a verb that are in force: flags first, then its settings file, then the defaults."""

from __future__ import annotations

import argparse
import typing
from pathlib import Path
from typing import Any, Protocol, TypeVar

from selfaug.cli.yaml_file import check_value, read_settings
from selfaug.common.errors import ConfigError, nearest

__all__ = ["MAP_HELP", "Add", "adder", "given", "resolve", "switch"]

Options = TypeVar("Options")
MAP_HELP = (
    "where the fields of a record stand in the rows, such as question=query documents=ctxs[].text answer=response"
)


class Add(Protocol):
    """Adds one flag; see :func:`adder`."""

    def __call__(self, name: str, help_: str, **options: Any) -> None: ...  # noqa: D102


def adder(parser: argparse.ArgumentParser) -> Add:
    """What adds a flag in both spellings (``--a_b``, ``--a-b``) without a default of its own.

    So what was typed can be told from what was not, and goes before the file of settings.
    """

    def add(name: str, help_: str, **options: Any) -> None:
        spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        parser.add_argument(*spellings, default=argparse.SUPPRESS, help=help_, **options)

    add("config", "YAML file of these options; flags go before it", metavar="FILE")
    return add


def switch(text: str) -> bool:
    """``true`` or ``false`` as people write them."""
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise argparse.ArgumentTypeError(f"expected true or false, received {text!r}")


def resolve(kind: type[Options], verb: str, parser: argparse.ArgumentParser, args: argparse.Namespace) -> Options:
    """The verb's options; see :func:`given`."""
    return kind(**given(kind, verb, parser, args))


def given(kind: type[Any], verb: str, parser: argparse.ArgumentParser, args: argparse.Namespace) -> dict[str, Any]:
    """Those of the verb's options that were typed or stand in its file of settings.

    Args:
        kind: A data class with a default for every field; each field is a flag of the same name.
        verb: For messages.
        parser: With the verb's flags.
        args: What was typed.

    Raises:
        ConfigError: If the file of settings has an unknown key or a value that its flag could not hold.
    """
    hints = typing.get_type_hints(kind)
    found = {name: value for name, value in vars(args).items() if name in hints}
    config = getattr(args, "config", None)
    if config is not None:
        actions = {action.dest: action for action in parser._actions}
        for name, value in read_settings(Path(config).expanduser()).items():
            if name not in hints or name not in actions:
                raise ConfigError(
                    f"{config}: {verb} has no option {name!r}.{nearest(name, hints)}",
                    f"`selfaug {verb} --help` lists every option.",
                )
            found.setdefault(name, check_value(actions[name], hints[name], value, f"{config}: {name}"))
    return found
