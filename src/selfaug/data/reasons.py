"""Why rows were left out: counted by reason first, then a few examples of each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["MANY", "Reason", "by_reason", "reason_lines"]

MANY = 0.1
"""Share of rows left out from which on it is a warning."""
_EXAMPLES = 3
_REASONS = 12
_LONGEST = 200
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\d[\d.,]*(?<![.,])")


@dataclass
class Reason:
    """One reason, and the rows that it holds for.

    Args:
        text: What their reasons share; ``…`` stands for what differs.
        examples: The first of them, as they are shown.
        count: All of them.
    """

    text: str
    examples: list[str]
    count: int


def by_reason(rows: Iterable[tuple[str, str]]) -> list[Reason]:
    """The reasons of rows, given as reason and the row as it is shown, the most frequent first.

    Numbers, quoted texts and what was received make no new reason.
    """
    found: dict[str, Reason] = {}
    for text, example in rows:
        kind = text.partition(", received ")[0]
        reason = found.setdefault(_VARYING.sub("…", kind), Reason(kind, [], 0))
        reason.text = _shared(reason.text, kind)
        reason.count += 1
        if len(reason.examples) < _EXAMPLES:
            reason.examples.append(example)
    return sorted(found.values(), key=lambda reason: -reason.count)


def reason_lines(rows: Sequence[tuple[str, str]], total: int, head: str = "rows left out") -> list[str]:
    """A small table of reasons with counts and shares, and examples below each; nothing where no row was left out.

    Args:
        rows: Of each row that was left out the reason, and the row as it is shown.
        total: Rows that came in.
        head: What became of them, for the first line.
    """
    if not rows:
        return []
    reasons = by_reason(rows)
    lines = [f"{len(rows):,} {head}, of {total:,} ({_share(len(rows), total)}), by reason:"]
    lines.append(f"  {'rows':>7}  {'share':>6}  reason")
    for reason in reasons[:_REASONS]:
        lines.append(f"  {reason.count:>7,}  {_share(reason.count, total):>6}  {_cut(reason.text)}")
        lines += [f"{'':>19}{_cut(example)}" for example in reason.examples]
        if reason.count > len(reason.examples):
            lines.append(f"{'':>19}and {reason.count - len(reason.examples):,} more")
    if len(reasons) > _REASONS:
        rest = sum(reason.count for reason in reasons[_REASONS:])
        lines.append(f"  {rest:>7,}  {_share(rest, total):>6}  {len(reasons) - _REASONS} further reasons")
    return lines


def _shared(one: str, other: str) -> str:
    if one == other:
        return one
    first, second = one.split(), other.split()
    if len(first) != len(second):
        return _VARYING.sub("…", other)
    return " ".join(a if a == b else "…" for a, b in zip(first, second, strict=True))


def _share(count: int, total: int) -> str:
    percent = 100 * count / max(1, total)
    return f"{percent:.0f} %" if percent >= 1 else "< 1 %"


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
