"""Phrases by which a response abstains, denies an answer or offers several, as a table by language.

The package's table is ``answer_forms.yaml``, whose first lines explain it; a user's file of the same shape adds to it.
There a language may also be a plain list: the phrases with which an abstaining response begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from selfaug.common.errors import ConfigError, nearest
from selfaug.common.files import read_yaml
from selfaug.common.fingerprint import files_of
from selfaug.data.words import marked_words

__all__ = ["Forms", "read_forms"]

_TABLE = Path(__file__).with_name("answer_forms.yaml")
_KINDS = (
    "openings", "begins", "whole", "not_before", "not_after", "only", "or", "or_after", "or_more", "and", "yes_no",
)  # fmt: skip
_SYNTAX = re.compile(r"(\.\.\.|[\[\]()|;]|\{\w*\})")
# The regular expression of each sign; "..." stands for up to 12 words.
_SIGNS = {
    "...": r"(?:(?![.,] )\S+ ){0,12}?", "[": "(?:", "]": ")?", "(": "(?:", ")": ")", "|": "|", ";": "[.,] ",
}  # fmt: skip
_NEVER = "(?!)"  # a regular expression without matches


@dataclass(frozen=True)
class Forms:
    """The compiled table. Its patterns read the words of :func:`selfaug.data.words.marked_words`, a space after each.

    Args:
        no_answer: Patterns, one for each language, of the beginning of a response that gives no answer.
        not_before: Pattern of the end of the text before an accepted answer that is denied.
        not_after: Pattern of the beginning of the text after an accepted answer that is denied.
        only: Pattern of the end of the text before an answer where a denial after it means "not only".
        or_before: Pattern of the end of the text before an answer that is one guess of several.
        or_after: Pattern of the beginning of the text after an answer that is one guess of several.
        joined: Pattern of what separates the items of a list.
        yes_no: Answers that count only at the beginning of a response, as words separated by spaces.
        source: Path, size and hash of the user's file; ``None`` without one.
    """

    no_answer: tuple[re.Pattern[str], ...]
    not_before: re.Pattern[str]
    not_after: re.Pattern[str]
    only: re.Pattern[str]
    or_before: re.Pattern[str]
    or_after: re.Pattern[str]
    joined: re.Pattern[str]
    yes_no: frozenset[str]
    source: Mapping[str, Any] | None = None

    def give_no_answer(self, words: Sequence[str]) -> bool:
        """Tell whether a response of these words and pauses begins by saying that it has no answer."""
        text = "".join(f"{word} " for word in words[:60]) + ". "
        return any(pattern.match(text) is not None for pattern in self.no_answer)

    def denied(self, before: str, behind: str) -> bool:
        """Tell whether the response denies the answer that is between the texts ``before`` and ``behind``."""
        if self.not_before.search(before) is not None:
            return True
        return self.not_after.match(behind) is not None and self.only.search(before) is None

    def guessed(self, before: str, behind: str, accepted: Sequence[str]) -> bool:
        """Tell whether the answer between the two texts is one guess of several of which another is not accepted."""
        joint = self.or_after.match(behind)
        if joint is not None and not any(behind.startswith(f"{answer} ", joint.end()) for answer in accepted):
            return True
        joint = self.or_before.search(before)
        others = "" if joint is None else f" {before[: joint.start()].rstrip(' ,')}"
        return bool(others.strip()) and not any(others.endswith(f" {answer}") for answer in accepted)


def read_forms(path: str | None = None) -> Forms:
    """Return the package's table together with the user's file.

    Raises:
        ConfigError: If the file cannot be read, or has an unknown key or a phrase that cannot be parsed.
    """
    return _package_forms() if path is None else _compiled(path)


@cache
def _package_forms() -> Forms:
    return _compiled(None)


def _compiled(path: str | None) -> Forms:
    table = _read(_TABLE)
    if path is not None:
        for language, kinds in _read(Path(path).expanduser()).items():
            known = table.setdefault(language, {"parts": {}})
            known["parts"] = {**known["parts"], **kinds.pop("parts")}
            for kind, forms in kinds.items():
                known[kind] = [*known.get(kind, ()), *forms]
    every = {kind: _either(table, kind) for kind in _KINDS}
    guess = r"(?:, (?:(?![.,] )\S+ ){1,3}?)*(?:, )?"
    return Forms(
        no_answer=tuple(_no_answer(kinds) for kinds in table.values() if kinds.get("begins") or kinds.get("whole")),
        not_before=re.compile(rf"(?:^|(?<= ))(?:{every['not_before']})$"),
        not_after=re.compile(every["not_after"]),
        only=re.compile(rf"(?:^|(?<= ))(?:{every['only']})$"),
        or_before=re.compile(rf"(?:^|(?<= ))(?:{every['or']})$"),
        or_after=re.compile(rf"{guess}(?:{every['or']}|{every['or_after']})(?!{every['or_more']})"),
        joined=re.compile(rf"(?:[.,] )?(?:^|(?<= ))(?:{every['and']})|[.,] "),
        yes_no=frozenset(" ".join(marked_words(form)) for kinds in table.values() for form in kinds.get("yes_no", ())),
        source=None if path is None else files_of([Path(path).expanduser()])[0],
    )


def _no_answer(kinds: Mapping[str, Any]) -> re.Pattern[str]:
    openings, begins, whole = (_joined(kinds, kind) for kind in ("openings", "begins", "whole"))
    return re.compile(rf"(?:(?:{openings})(?:[.,] )?)*(?:{begins}|(?:{whole})\. )")


def _either(table: Mapping[str, Mapping[str, Any]], kind: str) -> str:
    return "|".join(pattern for kinds in table.values() if (pattern := _joined(kinds, kind)) != _NEVER) or _NEVER


def _joined(kinds: Mapping[str, Any], kind: str) -> str:
    return "|".join(_pattern(form, kinds["parts"]) for form in kinds.get(kind, ())) or _NEVER


def _pattern(form: str, parts: Mapping[str, str], inside: tuple[str, ...] = ()) -> str:
    pattern = []
    for piece in _SYNTAX.split(form):
        name = piece[1:-1]
        if piece in _SIGNS:
            pattern.append(_SIGNS[piece])
        elif piece.startswith("{"):
            if name not in parts or name in inside:
                raise ValueError(f"{piece} is none of its language's parts ({', '.join(parts) or 'there are none'})")
            pattern.append(f"(?:{_pattern(parts[name], parts, (*inside, name))})")
        else:
            pattern += [f"{re.escape(word)} " for word in marked_words(piece)]
    return "".join(pattern)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    hint = (
        "write for example `en: {whole: [no comment]}`, or `en: [I would rather not]` for what such a response begins "
        "with; docs/evaluate.md shows more."
    )
    table = read_yaml(path, "abstentions", hint=hint)
    if not isinstance(table, dict) or not table:
        raise ConfigError(f"abstentions {str(path)!r} is no table of languages", hint)
    read: dict[str, dict[str, Any]] = {}
    for language, given in table.items():
        kinds = {"begins": given} if isinstance(given, list) else given
        where = f"abstentions {str(path)!r}: {language}"
        if not isinstance(kinds, dict):
            raise ConfigError(f"{where} is {given!r}, neither a list of forms nor a table of them", hint)
        parts = kinds.get("parts") or {}
        if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
            raise ConfigError(f"{where}.parts is {parts!r}, not a table of texts", hint)
        read[str(language)] = {"parts": parts}
        for kind, forms in kinds.items():
            if kind == "parts":
                continue
            if kind not in _KINDS:
                raise ConfigError(f"{where} has an unknown key {kind!r}.{nearest(str(kind), _KINDS)}", hint)
            if not isinstance(forms, list) or not all(isinstance(form, str) for form in forms):
                # YAML reads a bare yes, no or number as something else than a text.
                raise ConfigError(f"{where}.{kind} is {forms!r}, not a list of texts", f"quote each form; {hint}")
            if path != _TABLE:
                _check(forms, {**_parts_of(str(language)), **parts}, f"{where}.{kind}", hint)
            read[str(language)][kind] = forms
    return read


def _parts_of(language: str) -> dict[str, str]:
    parts: dict[str, str] = _read(_TABLE).get(language, {"parts": {}})["parts"]
    return parts


def _check(forms: Iterable[str], parts: Mapping[str, str], where: str, hint: str) -> None:
    for form in forms:
        try:
            empty = re.compile(_pattern(form, parts)).match("") is not None
        except (ValueError, re.error) as error:
            raise ConfigError(f"{where}: {form!r} cannot be understood: {error}", hint) from None
        if empty:
            raise ConfigError(f"{where}: {form!r} would match every response, since it needs no word", hint)
