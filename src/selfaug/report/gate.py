"""The gate: rules on the largest drop, smallest gain or most lost items of metrics, and verdicts on a run.

A rule names metrics and a limit. It is decided on the interval of the paired difference: ``pass`` if the whole interval
is on the right side of the limit, ``fail`` if all of it is on the wrong side, else ``undecided``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fnmatch import fnmatchcase
from typing import Any, Literal

from selfaug.common.errors import ConfigError, nearest
from selfaug.common.flips import Flips
from selfaug.report.gains import POINT_UNITS, Gain, Measured, mean_gain, measured

__all__ = ["Check", "Rule", "Verdict", "check", "concerns", "decide", "overall", "parse_rule"]

Kind = Literal["max-drop", "min-gain", "max-lost"]
Verdict = Literal["pass", "fail", "undecided"]

_GROUPS = ("task", "general")
_LIMIT = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(pt|%|)")


@dataclass(frozen=True)
class Rule:
    """``--max-drop NAME=LIMIT``, ``--min-gain NAME=LIMIT`` or ``--max-lost NAME=LIMIT``.

    Args:
        kind: ``max-drop``, ``min-gain`` or ``max-lost``.
        name: Name of a group, a part or a metric, or a pattern of names.
        limit: Limit as written, in units of ``scale``.
        scale: ``pt`` (hundredths), ``%`` (of the base's value), or ``""`` (the metric's own unit). Of ``max-lost``,
            ``pt`` and ``%`` are of the items, and ``""`` is a number of items.
    """

    kind: Kind
    name: str
    limit: Decimal
    scale: str

    def __str__(self) -> str:
        return f"--{self.kind} {self.name}={self.limit}{self.scale}"


@dataclass(frozen=True)
class Check:
    """The verdict of a rule on one metric or one mean.

    Args:
        rule: Rule that was checked.
        subject: Name of the metric or mean.
        gain: Gain with the interval that decided.
        floor: Smallest allowed gain, which is negative for an allowed drop.
        verdict: Verdict on the rule.
        reason: Reason in words.
    """

    rule: Rule
    subject: str
    gain: Gain
    floor: float
    verdict: Verdict
    reason: str

    def as_json(self) -> dict[str, Any]:
        """Return the check as JSON, with the bounds that decided."""
        gain = self.gain
        return {
            "rule": str(self.rule),
            "measured": self.subject,
            "verdict": self.verdict,
            "reason": self.reason,
            "gain": gain.value,
            "low": gain.low,
            "high": gain.high,
            "at_least": self.floor,
            "unit": gain.unit,
            "base": gain.base,
            "items": gain.n,
            "metrics": gain.members,
        }


def parse_rule(kind: Kind, text: str) -> Rule:
    """Parse a rule of the command line.

    Raises:
        ConfigError: If it is not ``NAME=LIMIT``, or the limit is not a finite number with ``pt``, ``%`` or no unit.
    """
    name, equals, limit = text.rpartition("=")
    hint = f"write --{kind} NAME=LIMIT, such as general=2pt, task=0, 'general:*=0.02' or task:f1=5%."
    if not equals or not name.strip():
        raise ConfigError(f"--{kind} {text!r} does not say what may change by how much", hint)
    match = _LIMIT.fullmatch(limit.strip())
    try:
        number = Decimal(match[1]) if match else None
    except InvalidOperation:
        number = None
    if match is None or number is None or not math.isfinite(float(number)):
        raise ConfigError(f"--{kind} {text!r}: {limit.strip()!r} is no limit", hint)
    return Rule(kind, name.strip(), number, match[2])


def decide(low: float, high: float, floor: float) -> Verdict:
    """Decide whether a gain between ``low`` and ``high`` is at least ``floor``."""
    return "pass" if low >= floor else "fail" if high < floor else "undecided"


def overall(checks: Sequence[Check]) -> Verdict:
    """Return ``fail`` if any check failed, else ``undecided`` if any is, else ``pass``."""
    verdicts = {one.verdict for one in checks}
    return "fail" if "fail" in verdicts else "undecided" if "undecided" in verdicts else "pass"


def check(rule: Rule, results: Mapping[str, Any]) -> tuple[list[Check], list[str]]:
    """Return the checks of a rule, and notes on metrics that it skips.

    ``task`` and ``general`` stand for the mean gain of the group's primary metrics, one for each unit. Any other name
    stands for each metric that it matches. Metrics that a pattern matches but whose unit does not fit the limit are
    skipped.

    Raises:
        ConfigError: If nothing has that name, or the limit does not fit a metric's unit.
    """
    every = list(measured(results))
    if rule.kind == "max-lost":
        return _checked_flips(rule, every)
    notes: list[str] = []
    if rule.name in _GROUPS:
        subjects, notes = _of_group(rule, every)
    else:
        subjects = [(_label(one), one.conservative) for one in _matching(rule, every)]
    # A pattern may match metrics in units that do not fit its limit.
    pattern, unsuited = any(sign in rule.name for sign in "*?["), None
    checks = []
    for label, gain in subjects:
        if gain is None:
            notes.append(f"{label} has no difference between base and tuned, and is left out of {rule}.")
            continue
        try:
            checks.append(_checked(rule, label, gain))
        except ConfigError as error:
            if not pattern:
                raise
            unsuited = error
            notes.append(f"{error.message.removeprefix(f'{rule}: ').rstrip('.')}, and is left out of {rule}.")
    if not checks and unsuited is not None:
        raise unsuited
    if not checks:
        raise ConfigError(f"{rule} finds nothing to decide on", _known_hint(every))
    return checks, notes


def _of_group(rule: Rule, every: Sequence[Measured]) -> tuple[list[tuple[str, Gain | None]], list[str]]:
    members = [(one, one.conservative) for one in every if one.group == rule.name and one.primary]
    by_unit: dict[str, list[tuple[Measured, Gain]]] = {}
    for one, gain in members:
        if gain is not None:
            by_unit.setdefault(one.unit, []).append((one, gain))
    if not by_unit:
        flag = " with --general quick, say" if rule.name == "general" else ""
        raise ConfigError(f"{rule}: the run has no results of the group {rule.name!r}", f"`selfaug evaluate` it{flag}.")
    notes = []
    if rule.scale == "pt":
        skipped = [_label(one) for unit, of in by_unit.items() if unit not in POINT_UNITS for one, _ in of]
        by_unit = {unit: of for unit, of in by_unit.items() if unit in POINT_UNITS}
        if not by_unit:
            raise _no_points(rule, skipped[0])
        notes += [f"{label} is not measured in points, and is left out of {rule}: name it itself." for label in skipped]
    elif not rule.scale and rule.limit and len(by_unit) > 1:
        raise ConfigError(
            f"{rule}: {rule.limit} of what? The group is measured in {' and in '.join(by_unit)}",
            f"write {rule.name}={rule.limit * 100:f}pt for metrics in points, and name the others one by one.",
        )
    subjects: list[tuple[str, Gain | None]] = []
    for of in by_unit.values():
        names = ", ".join(_label(one) for one, _ in of)
        label = names if len(of) == 1 else f"mean of {len(of)}: {names}"
        subjects.append((label, mean_gain([gain for _, gain in of])))
    return subjects, notes


def _checked_flips(rule: Rule, every: Sequence[Measured]) -> tuple[list[Check], list[str]]:
    """Return the checks of ``--max-lost``: of a group on the sum over its parts, else of each metric."""
    if rule.name in _GROUPS:
        members = [one for one in every if one.group == rule.name and one.primary]
    else:
        members = _matching(rule, every)
    counted = [(one, _flipping(one, every)) for one in members]
    known = {_label(one): one.flips for _, one in counted if one is not None and one.flips is not None}
    notes = [
        f"{_label(one)} has no items that are right or wrong, and is left out of {rule}."
        for one, found in counted
        if found is None
    ]
    if not known:
        raise ConfigError(
            f"{rule} finds no items that are right or wrong",
            "name a metric of answers, such as task:answer_match; results of an older version have to be made again "
            "(`selfaug evaluate`, which repeats no finished part).",
        )
    if rule.name in _GROUPS:
        known = {", ".join(known): sum(known.values(), Flips(0, 0, 0))}
    return [_checked_lost(rule, label, found) for label, found in known.items()], notes


def _flipping(one: Measured, every: Sequence[Measured]) -> Measured | None:
    """Return the metric itself, or for a part's primary metric without flips the first of the part that has them."""
    if one.flips is not None or not one.primary:
        return one if one.flips is not None else None
    same = (other for other in every if other.part == one.part and other.subtask is None and other.flips is not None)
    return next(same, None)


def _checked_lost(rule: Rule, label: str, found: Flips) -> Check:
    limit = float(rule.limit) * (found.n / 100 if rule.scale else 1)
    surely = found.surely_lost
    # All flips may be the tuning's, and those beyond noise surely are.
    gain = Gain(-float(found.lost), -float(found.lost), -float(surely), "items", float(found.n), found.n)
    verdict = decide(-found.lost, -surely, -limit)
    reasons = {
        "pass": "lost no more items than the limit",
        "fail": "surely lost more items than the limit",
        "undecided": f"{found.lost} items were lost, and {found.gained} gained: noise may explain all but {surely}",
    }
    return Check(rule, label, gain, 0.0 - limit, verdict, reasons[verdict])


def _matching(rule: Rule, every: Sequence[Measured]) -> list[Measured]:
    matches = [one for one in every if any(_fits(name, rule.name) for name in _names(one))]
    if matches:
        return matches
    same = next((one.metric for one in every if one.metric == rule.name), None)
    if same is not None:
        raise ConfigError(f"{rule}: {same!r} is a metric, and more than one part may have it", f"write '*:{same}=...'.")
    known = [*_GROUPS, *(name for one in every for name in _names(one))]
    raise ConfigError(f"{rule}: nothing is called {rule.name!r}.{nearest(rule.name, known)}", _known_hint(every))


def _fits(name: str, pattern: str) -> bool:
    """Match a pattern piece by piece between colons: ``general:*`` is each part, ``*:f1`` a metric of each part."""
    pieces, wanted = name.split(":"), pattern.split(":")
    return len(pieces) == len(wanted) and all(map(fnmatchcase, pieces, wanted))


def concerns(rule: Rule, part: str, name: str, group: str) -> bool:
    """Return whether a rule is about a part or a metric of it, as far as names tell before anything is measured.

    Args:
        rule: Rule.
        part: Key of the part, such as ``general:arc_challenge``.
        name: Name of the part, such as ``arc_challenge``.
        group: ``task`` or ``general``.
    """
    if rule.name in _GROUPS:
        return rule.name == group
    outer = rule.name.rpartition(":")[0].partition("/")[0]
    return any(_fits(known, wanted) for known in _part_names(part, name, group) for wanted in (rule.name, outer))


def _part_names(part: str, name: str, group: str) -> list[str]:
    # The key of a plain text (`text:news`) does not begin with its group, `general`.
    own_kind = part.partition(":")[0] != group
    return list(dict.fromkeys((part, name, *([f"{group}:{name}"] if own_kind else ()))))


def _names(one: Measured) -> list[str]:
    parts = _part_names(one.part, one.name, one.group)
    if one.subtask is not None:
        return [f"{part}/{one.subtask}:{one.metric}" for part in parts]
    return [*(parts if one.primary else ()), *(f"{part}:{one.metric}" for part in parts)]


def _label(one: Measured) -> str:
    inner = "" if one.subtask is None else f"/{one.subtask}"
    return f"{one.part}{inner}:{one.metric}"


def _known_hint(every: Sequence[Measured]) -> str:
    names = dict.fromkeys(_label(one) for one in every if one.subtask is None)
    return f"name a group (task, general), a part, or one of {', '.join(names)}."


def _no_points(rule: Rule, label: str) -> ConfigError:
    return ConfigError(
        f"{rule}: {label} is not measured in points", "give a number in the metric's own unit, or a percentage."
    )


def _checked(rule: Rule, label: str, gain: Gain) -> Check:
    limit = float(rule.limit)
    if rule.scale == "pt":
        if gain.unit not in POINT_UNITS:
            raise _no_points(rule, label)
        limit = float(rule.limit / 100)
    elif rule.scale == "%":
        if gain.base <= 0 or gain.unit == "score":
            raise ConfigError(
                f"{rule}: {label} is {gain.base:g} for the base ({gain.unit}); a percentage of that says nothing",
                "give points (2pt), or a number in the metric's own unit.",
            )
        limit = float(rule.limit / 100) * gain.base
    floor = 0.0 + (-limit if rule.kind == "max-drop" else limit)
    if gain.low is None or gain.high is None:
        return Check(rule, label, gain, floor, "undecided", f"there is no interval: {gain.because or 'not known'}")
    verdict = decide(gain.low, gain.high, floor)
    return Check(rule, label, gain, floor, verdict, _reason(rule, gain, floor, verdict))


def _reason(rule: Rule, gain: Gain, floor: float, verdict: Verdict) -> str:
    if rule.kind == "max-drop":
        reasons = {"pass": "surely lost no more than the limit", "fail": "surely lost more than the limit"}
    else:
        reasons = {"pass": "surely gained the limit or more", "fail": "surely gained less than the limit"}
    if verdict != "undecided":
        return reasons[verdict]
    distance = abs(gain.value - floor)
    reach = gain.value - (gain.low or 0.0) if gain.value >= floor else (gain.high or 0.0) - gain.value
    # The width of an interval falls with the square root of the number of items.
    times = (reach / distance) ** 2 if distance else math.inf
    more = (
        f"; about {times:.{0 if times >= 10 else 1}f} times as many items would decide, if the gain stays"
        if times < 100
        else ""
    )
    return f"{gain.n} items are too few: the interval holds the limit{more}"
