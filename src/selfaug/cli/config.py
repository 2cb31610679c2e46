"""The options of a verb, defined by a data class: its flags, its help, and the keys of its YAML file.

Each field, made with :func:`selfaug.common.options.option`, is one option. Typed values override the file, and the file
overrides defaults. Data classes of other libraries, whose fields have no groups, are supported too.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import shutil
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from textwrap import fill
from typing import Any, Generic, NoReturn, TypeVar

from selfaug.cli.yaml_file import read_settings
from selfaug.common.errors import ConfigError, nearest
from selfaug.common.options import REQUIRED
from selfaug.common.quiet import FLAG
from selfaug.common.terminal import say

__all__ = [
    "ALL", "VERBOSE", "Call", "Command", "Option", "Parser", "build_parser", "options_of", "read", "read_words",
    "resolved", "take_config", "under_present_names",
]  # fmt: skip

Options = TypeVar("Options")
_TRUTH = {"true": True, "t": True, "yes": True, "y": True, "1": True,
          "false": False, "f": False, "no": False, "n": False, "0": False}  # fmt: skip
_WIDEST = 110
ALL = "--help-all"
VERBOSE = "Show all that other libraries print and warn of, and not only what matters (docs/train.md says what does)."


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ``ConfigError`` with a hint, and does not accept abbreviations."""

    def __init__(self, *args: Any, list_with: str = "--help", **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})
        self.list_with = list_with

    def error(self, message: str) -> NoReturn:
        """Raise the error that argparse would print."""
        raise ConfigError(message, f"`{self.prog} {self.list_with}` lists every option and its values.")


@dataclass(frozen=True)
class Command(Generic[Options]):
    """A verb of the command line.

    Args:
        name: Words after ``selfaug``.
        options: Data class of its options, or several for a verb that parses its own words.
        about: Description for its help.
        examples: Command lines for its help.
        parts: Subcommands; a verb with subcommands has no options of its own.
        takes_others: Whether unknown options are kept for another verb instead of being refused.
        reads_itself: Whether it parses its own words, so that ``options`` only serve the help.
    """

    name: str
    options: type[Options] | tuple[type, ...]
    about: str
    examples: tuple[str, ...]
    parts: tuple[Command[Any], ...] = ()
    takes_others: bool = False
    reads_itself: bool = False

    @property
    def prog(self) -> str:
        """Command as it is typed."""
        return f"selfaug {self.name}"

    @property
    def kinds(self) -> tuple[type, ...]:
        """Data classes of its options."""
        return self.options if isinstance(self.options, tuple) else (self.options,)


@dataclass(frozen=True)
class Call(Generic[Options]):
    """One call of a verb.

    Args:
        command: Verb, or the subcommand that was named.
        settings: Values of the options; for a verb that parses its own words the data class itself.
        given: Names of the options that were typed or are in the file.
        argv: Words after the verb.
        words: Words for another verb.
        keys: Settings of the file for another verb.
    """

    command: Command[Options]
    settings: Options
    argv: list[str]
    given: frozenset[str] = frozenset()
    words: list[str] = field(default_factory=list)
    keys: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Option:
    """One option, as a flag and as a key of a file.

    Args:
        name: Name of the field; the flag is ``--name``.
        hint: Type of the field.
        default: Default, or :data:`REQUIRED`.
        about: Metadata of the field.
        group: Title of its group in the help.
    """

    name: str
    hint: Any
    default: Any
    about: Mapping[str, Any]
    group: str

    @functools.cached_property
    def kinds(self) -> tuple[Any, ...]:
        """Types that it may hold besides none; for a literal the type of its values."""
        union = typing.get_origin(self.hint) in (typing.Union, types.UnionType)
        found = [kind for kind in (typing.get_args(self.hint) if union else (self.hint,)) if kind is not types.NoneType]
        literal = [kind for kind in found if typing.get_origin(kind) is typing.Literal]
        return tuple([kind for kind in found if kind not in literal] or [type(typing.get_args(literal[0])[0])])

    @functools.cached_property
    def choices(self) -> tuple[Any, ...]:
        """Allowed values, where they are listed; else nothing."""
        if typing.get_origin(self.hint) is typing.Literal:
            return typing.get_args(self.hint)
        enums = [kind for kind in self.kinds if isinstance(kind, type) and issubclass(kind, Enum)]
        return tuple(self.about.get("choices") or (member.value for kind in enums for member in kind))

    @functools.cached_property
    def elements(self) -> Any:
        """Type of the elements of a list, or ``None`` for a single value.

        An option that takes a text or a list of texts is typed as a single value.
        """
        inner = [typing.get_args(kind)[0] for kind in self.kinds if typing.get_origin(kind) is list]
        return None if not inner or (inner == [str] and str in self.kinds) else inner[0]

    @property
    def optional(self) -> bool:
        """Whether it may hold none."""
        return types.NoneType in typing.get_args(self.hint) or self.default is None

    @property
    def is_switch(self) -> bool:
        """Whether it is true or false."""
        return bool in self.kinds

    @property
    def metavar(self) -> str:
        """Placeholder of its value."""
        if "metavar" in self.about or self.about.get("positional"):
            return str(self.about.get("metavar", self.name.upper()))
        words = {bool: "true|false", int: "N", float: "NUMBER", str: "TEXT"}
        return next((word for kind, word in words.items() if kind in (*self.kinds, self.elements)), "VALUE")

    @property
    def help(self) -> str:
        """Help text, with the default."""
        text, shown = str(self.about.get("help", "")), self.about.get("shown")
        if shown is None and self.default not in (None, REQUIRED, "", []) and "default:" not in text.lower():
            shown = _as_typed(self.default).replace("%", "%%")
        return text if shown is None else f"{text} (default: {shown})"

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of ``add_argument``; an option that is not typed is absent from the parser's result."""
        arguments: dict[str, Any] = {"default": argparse.SUPPRESS, "type": self.convert, "help": self.help}
        if self.about.get("repeated"):
            arguments["action"] = "append"
        elif self.elements is not None:
            arguments["nargs"] = "+"
        elif self.is_switch or "const" in self.about or self.about.get("positional"):
            arguments |= {"nargs": "?", "const": True if self.is_switch else self.about.get("const")}
        return arguments | ({"choices": self.choices} if self.choices else {"metavar": self.metavar})

    def convert(self, text: str) -> Any:
        """Convert a typed word to a value.

        Raises:
            ArgumentTypeError: If that is impossible.
        """
        try:
            return self._convert(text)
        except (ValueError, TypeError, KeyError):
            raise argparse.ArgumentTypeError(f"expected {self._expected}, received {text!r}") from None

    def _convert(self, text: str) -> Any:
        if "type" in self.about:
            return self.about["type"](text)
        if self.choices:
            return next((choice for choice in self.choices if str(choice) == text), text)
        if self.elements is not None:
            return self.elements(text)
        if self.is_switch:
            return _TRUTH[text.lower()]
        if str in self.kinds:
            return text
        if self.optional and text.lower() in ("none", "null"):
            return None
        return (typing.get_origin(self.kinds[0]) or self.kinds[0])(text)

    def read(self, value: Any, where: str) -> Any:
        """Convert a value from YAML to the value that the flag would give.

        Args:
            value: Value from YAML.
            where: File and key, for the message.

        Raises:
            ConfigError: If the option does not allow the value.
        """
        origins = {typing.get_origin(kind) or kind for kind in self.kinds}
        if (value is None and self.optional) or (isinstance(value, dict) and dict in origins):
            return value
        if isinstance(value, dict) and self.elements is str:  # `map: {question: query}` is `--map question=query`
            value = [f"{key}={inner}" for key, inner in value.items()]
        if isinstance(value, list) and list in origins:
            plain = self.elements is None or all(isinstance(one, dict) for one in value)
            return value if plain else [self._read_one(one, where) for one in value]
        if not isinstance(value, (str, int, float, bool)):
            raise self._wrong(value, where)
        return self._read_one(value, where) if self.elements is None else [self._read_one(value, where)]

    def _read_one(self, value: Any, where: str) -> Any:
        text = str(value)
        if isinstance(value, bool) and not self.is_switch:
            # YAML 1.1 reads `eval_strategy: no` as false.
            words = ("yes", "on", "true") if value else ("no", "off", "false")
            text = next((word for word in words if word in self.choices), text.lower() if str in self.kinds else "")
        try:
            found = self.convert(text)
        except argparse.ArgumentTypeError:
            raise self._wrong(value, where) from None
        if self.choices and found not in self.choices:
            raise self._wrong(value, where, nearest(text, map(str, self.choices)))
        return found

    @property
    def _expected(self) -> str:
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        words = {bool: "true or false", int: "a whole number", float: "a number", dict: "a mapping", str: "a text"}
        inner = {typing.get_origin(kind) or kind for kind in (*self.kinds, self.elements)}
        known = " or ".join(word for kind, word in words.items() if kind in inner) or "another type"
        return known if self.elements is None else f"a list of {known}"

    def _wrong(self, value: Any, where: str, close: str = "") -> ConfigError:
        return ConfigError(f"{where} is {value!r}; expected {self._expected}{close}", "correct the value in the file.")


def _as_typed(value: Any) -> str:
    """Return a default as it would be typed."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(_as_typed, value))
    if isinstance(value, bool):
        return str(value).lower()
    return str(value.value if isinstance(value, Enum) else value)


def options_of(*kinds: type) -> dict[str, Option]:
    """Return the options of data classes by name; of two fields with the same name the first."""
    options: dict[str, Option] = {}
    for kind in kinds:
        hints = typing.get_type_hints(kind)
        title = vars(kind).get("GROUP", f"More settings ({kind.__name__})")
        for one in dataclasses.fields(kind):
            title = one.metadata.get("group", title)
            if one.init and one.name not in options:
                made = one.default_factory() if one.default_factory is not dataclasses.MISSING else one.default
                options[one.name] = Option(one.name, hints[one.name], made, one.metadata, title)
    return options


def build_parser(command: Command[Any], options: Mapping[str, Option]) -> Parser:
    """Return the parser of a verb, whose help has groups and examples."""
    width = min(_WIDEST, shutil.get_terminal_size().columns - 2)
    lines = [f"  {example}" for example in command.examples]
    parser = Parser(
        prog=command.prog,
        usage=_usage(command, options),
        description="\n\n".join(fill(part, width, break_on_hyphens=False) for part in command.about.split("\n\n")),
        epilog="\n".join(["Examples:", *lines]),
        formatter_class=functools.partial(
            argparse.RawDescriptionHelpFormatter, width=width, max_help_position=min(32, width // 3)
        ),
        add_help=False,
        list_with=ALL if command.reads_itself else "--help",
    )
    groups: dict[str, Any] = {}
    for one in options.values():
        if one.group not in groups:
            groups[one.group] = parser.add_argument_group(one.group)
        group = groups[one.group]
        if one.about.get("positional"):
            group.add_argument(one.name, **one.arguments()).required = False  # the file may give it
            continue
        group.add_argument(f"--{one.name}", **one.arguments())
        if one.is_switch and one.default is True:
            group.add_argument(f"--no_{one.name}", dest=one.name, action="store_false", default=argparse.SUPPRESS,
                               help=argparse.SUPPRESS)  # fmt: skip
    if command.parts:
        group = parser.add_argument_group("Parts")
        for part in command.parts:
            group.add_argument(part.name.split()[-1], nargs="?", help=part.about.split("\n\n")[0])
    every = parser.add_argument_group("Every command")
    if not command.parts:
        every.add_argument("--config", metavar="FILE", help="YAML file of these options; what is typed wins over it.")
    every.add_argument(FLAG, action="store_true", default=argparse.SUPPRESS, help=VERBOSE)
    every.add_argument("-h", "--help", action="help", help="Show this page.")
    if command.reads_itself:
        every.add_argument(ALL, action="store_true", help="Show every flag, those of other libraries too.")
    return parser


def _usage(command: Command[Any], options: Mapping[str, Option]) -> str:
    words = [command.prog, *(["PART"] if command.parts else [])]
    for one in options.values():
        if one.about.get("positional"):
            word = one.metavar if one.default is REQUIRED else f"[{one.metavar}]"
            words += [word, *(["..."] if one.elements is not None else [])]
        elif one.default is REQUIRED:
            words += [f"--{one.name}", one.metavar]
    return " ".join([*words, "[options]"]).replace("%", "%%")


def take_config(words: Sequence[str]) -> tuple[list[str], Path | None]:
    """Return the words without ``--config FILE``, and the file.

    Raises:
        ConfigError: If it is given twice or names no file.
    """
    file = None
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name != "--config":
            kept.append(word)
            continue
        value = value if equals else next(rest, "")
        if file is not None or not value:
            what = "is given twice" if value else "names no file"
            raise ConfigError(f"--config {what}", "pass one YAML file: --config settings.yaml.")
        file = Path(value).expanduser()
    return kept, file


def _earlier_names(options: Mapping[str, Option]) -> dict[str, str]:
    """Return the present name of each option that had another one."""
    return {old: name for name, one in options.items() for old in one.about.get("earlier", ())}


def under_present_names(keys: Mapping[str, Any], options: Mapping[str, Option], path: Path | None) -> dict[str, Any]:
    """Return the keys of a file, with the present names of options that were renamed.

    Raises:
        ConfigError: If an option stands there under both names.
    """
    renamed = _earlier_names(options)
    present: dict[str, Any] = {}
    for key, value in keys.items():
        name = renamed.get(key, key)
        if name in present:
            raise ConfigError(
                f"{path}: {name} is given twice, once under an earlier name", f"leave {name} alone there."
            )
        if name != key:
            say(f"{path}: {key} is now {name}; the earlier name works until version 1.0.")
        present[name] = value
    return present


def read_words(parser: Parser, options: Mapping[str, Option], words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the typed values by name, and the words that the parser does not know.

    ``--a-b`` means ``--a_b``, and an earlier name of an option the present one. Where a verb has positional arguments,
    a switch takes the next word only if that is true or false.
    """
    flags = {f"--{name}" for name in options} | {f"--no_{name}" for name, one in options.items() if one.is_switch}
    renamed = {f"--{before}{old}": f"--{before}{new}" for old, new in _earlier_names(options).items()
               for before in ("", "no_")}  # fmt: skip
    bare = any(one.about.get("positional") for one in options.values())
    normalised = []
    for place, word in enumerate(words):
        flag, equals, value = word.partition("=")
        known = flag if flag in flags else f"--{flag[2:].replace('-', '_')}"
        if known not in flags and known in renamed:
            say(f"{known} is now {renamed[known]}; the earlier name works until version 1.0.")
            known = renamed[known]
        if not flag.startswith("--") or known not in flags:
            normalised.append(word)
            continue
        one = options.get(known[2:])
        after = words[place + 1].lower() if place + 1 < len(words) else ""
        if bare and one is not None and one.is_switch and not equals and after not in _TRUTH:
            equals, value = "=", "true"
        normalised.append(f"{known}{equals}{value}")
    parsed, rest = parser.parse_known_args(normalised)
    return {name: value for name, value in vars(parsed).items() if name in options}, rest


def resolved(options: Mapping[str, Option], typed: Mapping[str, Any], file: Mapping[str, Any]) -> dict[str, Any]:
    """Return every option's value: the typed one, else that of the file, else the default."""
    return {name: typed.get(name, file.get(name, one.default)) for name, one in options.items()}


def read(command: Command[Options], argv: Sequence[str]) -> Call[Options]:
    """Read a call of a verb from the words after it and the file that ``--config`` names.

    Raises:
        ConfigError: If an option or key is unknown (with a similar name), has a wrong type or value, or is missing.
        SystemExit: After printing the help.
    """
    if command.parts:
        return read(_part(command, argv), list(argv)[1:])
    if command.reads_itself:
        if {"-h", "--help"} & set(argv):
            build_parser(command, options_of(*command.kinds)).parse_args(["--help"])
        return Call(command, typing.cast(Options, command.options), list(argv))
    options = options_of(*command.kinds)
    words, path = take_config(argv)
    typed, rest = read_words(build_parser(command, options), options, words)
    file = {} if path is None else under_present_names(read_settings(path), options, path)
    others = {key: value for key, value in file.items() if key not in options}
    if rest and not command.takes_others:
        _refuse_word(command, options, rest[0])
    for key in () if command.takes_others else others:
        raise ConfigError(
            f"{path}: {key!r} is no option of `{command.prog}`.{nearest(key, options)}",
            f"`{command.prog} --help` lists every option.",
        )
    known = {key: options[key].read(value, f"{path}: {key}") for key, value in file.items() if key in options}
    values = resolved(options, typed, known)
    for name, value in values.items():
        if value is REQUIRED:
            raise ConfigError(f"{name} is not given", f"write `{_usage(command, options)}`, or `{name}:` in the file.")
    (kind,) = command.kinds
    return Call(command, kind(**values), list(argv), frozenset(typed) | frozenset(known), rest, others)


def _part(command: Command[Any], argv: Sequence[str]) -> Command[Any]:
    parts = {part.name.split()[-1]: part for part in command.parts}
    word = argv[0] if argv else ""
    if word in ("-h", "--help"):
        build_parser(command, {}).parse_args(["--help"])
    if word not in parts:
        what = f"has no part {word!r}.{nearest(word, parts)}" if word else "has parts, and none is named"
        raise ConfigError(f"`{command.prog}` {what}", f"the parts are {', '.join(parts)}: `{command.prog} PART ...`.")
    return parts[word]


def _refuse_word(command: Command[Any], options: Mapping[str, Option], word: str) -> NoReturn:
    flag = word.partition("=")[0]
    close = nearest(flag, [f"--{name}" for name in options])
    what = f"does not know {flag!r}.{close}" if flag.startswith("-") else f"has no place for {word!r}"
    raise ConfigError(f"`{command.prog}` {what}", f"`{command.prog} --help` lists its options.")
