"""Rows that were left out, counted by reason: the reasons first, then a few examples of each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from selfaug.data.fields import RECEIVED

__all__ = ["WARN_ABOVE_SHARE", "Reason", "by_reason", "reason_lines"]

WARN_ABOVE_SHARE = 0.1
"""Share of left-out rows above which callers warn."""
_MAX_EXAMPLES = 3
_MAX_REASONS = 12
_MAX_CHARACTERS = 200
# Quoted texts and numbers. A number does not end with the comma or full stop of its sentence.
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\d[\d.,]*(?<![.,])")


@dataclass
class Reason:
    """A reason for leaving rows out.

    Args:
        text: Text that the messages of these rows have in common; ``…`` stands for words in which they differ.
        examples: Lines of the first few rows.
        count: Number of rows.
    """

    text: str
    examples: list[str]
    count: int


def by_reason(left_out: Iterable[tuple[str, str]]) -> list[Reason]:
    """Return the reasons for leaving rows out, the most frequent first.

    Messages that differ only in numbers, quoted texts, or what follows ``, received `` count as one reason.

    Args:
        left_out: Pairs of a message and a line that names the row, one for each row that was left out.
    """
    found: dict[str, Reason] = {}
    for message, line in left_out:
        text = message.partition(RECEIVED)[0]
        reason = found.setdefault(_VARYING.sub("…", text), Reason(text, [], 0))
        # A number or quoted text that is the same in all messages is kept, since it may be the point (`needs … tokens,
        # 150 are allowed`).
        reason.text = _common_words(reason.text, text)
        reason.count += 1
        if len(reason.examples) < _MAX_EXAMPLES:
            reason.examples.append(line)
    return sorted(found.values(), key=lambda reason: -reason.count)


def reason_lines(left_out: Sequence[tuple[str, str]], total: int, caption: str = "rows left out") -> list[str]:
    """Return a table of the reasons with counts, shares and examples, as lines; without left-out rows no line.

    Args:
        left_out: Pairs of a message and a line that names the row, one for each row that was left out.
        total: Number of all rows.
        caption: Words of the first line that follow the number of rows.
    """
    if not left_out:
        return []
    reasons = by_reason(left_out)
    lines = [f"{len(left_out):,} {caption}, of {total:,} ({_share(len(left_out), total)}), by reason:"]
    lines.append(f"  {'rows':>7}  {'share':>6}  reason")
    indent = " " * 19  # the width of the two columns before the reason: 2 + 7 + 2 + 6 + 2
    for reason in reasons[:_MAX_REASONS]:
        lines.append(f"  {reason.count:>7,}  {_share(reason.count, total):>6}  {_cut(reason.text)}")
        lines += [f"{indent}{_cut(example)}" for example in reason.examples]
        if reason.count > len(reason.examples):
            lines.append(f"{indent}and {reason.count - len(reason.examples):,} more")
    if len(reasons) > _MAX_REASONS:
        rest = sum(reason.count for reason in reasons[_MAX_REASONS:])
        lines.append(f"  {rest:>7,}  {_share(rest, total):>6}  {len(reasons) - _MAX_REASONS} further reasons")
    return lines


def _common_words(one: str, other: str) -> str:
    """Return two messages of one reason as one, with ``…`` for each word in which they differ.

    If quoted texts have different numbers of words, the words have no counterparts: all that may vary becomes ``…``.
    """
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
    return text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 1]}…"
