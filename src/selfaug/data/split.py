"""The train/held-out split, in which no document is on both sides."""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from selfaug.common.errors import ConfigError, DataError
from selfaug.data.record import Conversation, Item, Record

__all__ = [
    "HeldOut", "Split", "asked_of", "documents_of", "hold_out", "plain", "question_of", "row_of",
    "split_by_document", "titles_of",
]  # fmt: skip

Example: TypeAlias = Item | dict[str, Any]


@dataclass(frozen=True)
class HeldOut:
    """The held-out examples of a data set.

    Args:
        places: Indices of the held-out examples.
        groups: Number of groups of examples that must be on the same side.
        examples: Number of all examples.
    """

    places: frozenset[int]
    groups: int
    examples: int


@dataclass(frozen=True)
class Split:
    """Two parts of a data set, each in the data set's order.

    Args:
        train: Training examples.
        held_out: Held-out examples.
        groups: Number of groups of examples that must be on the same side.
        held_out_places: Indices of the held-out examples in the data set.
    """

    train: list[Example]
    held_out: list[Example]
    groups: int
    held_out_places: frozenset[int]


def split_by_document(
    examples: Sequence[Example], fraction: float, seed: int = 0, keys: Sequence[Collection[str]] = ()
) -> Split:
    """Return a split with about ``fraction`` of the examples held out, and no document or question on both sides.

    Examples that share a document, or a question with its answer, form a group (case, spacing and punctuation do not
    count): the groups are the connected components of the graph of examples and texts. Groups stay whole, and are held
    out in an order drawn from their texts, so the split does not depend on the order of the examples.

    Args:
        examples: Records, conversations (grouped by their first user message if they have no documents) or TRL's rows
            (grouped by prompt).
        fraction: Fraction of the examples to hold out, strictly between 0 and 1. At least one example is held out and
            one is not.
        seed: Seed of the split.
        keys: Sets of other texts, such as titles, one for each example. Examples with an equal text form a group.

    Raises:
        ConfigError: If ``fraction`` is not between 0 and 1.
        DataError: If all examples form one group, or the groups are too large for the fraction.
    """
    held_out = hold_out(examples, fraction, seed, keys)
    return Split(
        [example for i, example in enumerate(examples) if i not in held_out.places],
        [example for i, example in enumerate(examples) if i in held_out.places],
        held_out.groups,
        held_out.places,
    )


def hold_out(
    examples: Iterable[Example], fraction: float, seed: int = 0, keys: Sequence[Collection[str]] = ()
) -> HeldOut:
    """Return the indices that :func:`split_by_document` holds out, in one pass that keeps no example in memory."""
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise ConfigError(
            f"held_out={fraction!r} is not a fraction between 0 and 1, of the examples to hold out",
            "give a fraction such as 0.1, or 0 to hold nothing out.",
        )
    groups = _groups(examples, keys)
    count = sum(len(group) for _, group in groups)
    target = min(count - 1, max(1, math.floor(fraction * count + 0.5)))
    chosen: set[int] = set()
    for group in sorted(groups, key=lambda group: _draw(seed, group[0])):
        if len(chosen) + len(group[1]) <= target:
            chosen.update(group[1])
    if not chosen:
        # Every group is larger than the target: hold out the smallest, if it is at most half of the examples.
        smallest = min(groups, key=lambda group: (len(group[1]), _draw(seed, group[0])), default=("", []))[1]
        if 2 * len(smallest) > count or len(groups) < 2:
            tie = "a document, what is asked or a value of group_by" if keys else "a document or what is asked"
            raise DataError(
                f"{count} examples cannot be split by document: they form {len(groups)} groups that share"
                f" {tie}, the largest of {max((len(g) for _, g in groups), default=0)}, and"
                f" {target} should be held out",
                "hold nothing out (--held_out 0) and give a held-out file of your own, or split before documents are"
                " retrieved (`selfaug prepare --corpus` does).",
            )
        chosen.update(smallest)
    return HeldOut(frozenset(chosen), len(groups), count)


class _Signs(dict[int, str]):
    """Table of :func:`plain` from code points to their replacements, filled on demand."""

    def __missing__(self, code: int) -> str:
        sign = chr(code)
        if any(first <= code <= last for first, last in _UNSPACED):
            self[code] = f" {sign} "
        else:
            self[code] = sign if sign.isalnum() or unicodedata.category(sign)[0] == "M" else " "
        return self[code]


# Scripts written without spaces between words: Thai, Lao, Khmer, Myanmar, kana, Han and Hangul syllables.
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0xAC00, 0xD7AF),
)  # fmt: skip
_SIGNS = _Signs()


def plain(text: str) -> str:
    """Return a text without what may differ between two copies: case, width, spacing and punctuation.

    The rule differs from that for scoring answers, which may change: a run's held-out set is drawn from these texts,
    and must be the same when the run is evaluated later. A text of punctuation alone is kept as it is.
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().translate(_SIGNS).split()) or text.strip()


def documents_of(example: Example) -> list[str]:
    """Return the texts of an example's documents."""
    return [] if isinstance(example, dict) else [document.text for document in example.documents]


def question_of(example: Example) -> str:
    """Return what an example asks: its question, its first user message, or what TRL would use as the prompt.

    For a record with documents the first answer is added, since "What is this text about?" may be asked of every
    document.
    """
    if isinstance(example, Record):
        return " → ".join((example.question, *example.answers[:1])) if example.documents else example.question
    if isinstance(example, Conversation):
        asked = (str(m["content"]) for m in example.messages if m.get("role") == "user" and m.get("content"))
        return next(asked, "") or _written(example.messages)
    asked_of = next((example[key] for key in ("prompt", "text", "input_ids") if example.get(key)), example)
    return asked_of if isinstance(asked_of, str) else _written(asked_of)


def titles_of(example: Example) -> list[str]:
    """Return the titles of an example's documents."""
    return [] if isinstance(example, dict) else [document.title for document in example.documents if document.title]


def asked_of(example: Example) -> str:
    """Return the question without the answer that :func:`question_of` may add."""
    return example.question if isinstance(example, Record) else question_of(example)


def row_of(example: Example) -> list[str]:
    """Return the texts of an example without its documents: system text, question and answers, or all messages."""
    if isinstance(example, Record):
        return [example.system or "", example.question, *example.answers]
    return [_written(example.messages if isinstance(example, Conversation) else example)]


def _groups(examples: Iterable[Example], keys: Sequence[Collection[str]]) -> list[tuple[str, list[int]]]:
    """Return the groups of indices that must be on the same side, each named by the smallest of its texts."""
    parent: list[int] = []

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first: dict[bytes, int] = {}
    names = []
    for i, example in enumerate(examples):
        parent.append(i)
        texts = [("question", plain(question_of(example)))]
        texts += [("document", plain(text)) for text in documents_of(example)]
        names.append(min(text for _, text in texts))
        texts += [("key", plain(key)) for key in (keys[i] if keys else ())]
        for kind, text in texts:
            key = hashlib.blake2b(f"{kind}\n{text}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
            parent[root(i)] = root(first.setdefault(key, i))
    members: defaultdict[int, list[int]] = defaultdict(list)
    for i in range(len(parent)):
        members[root(i)].append(i)
    return [(min(names[i] for i in group), group) for group in members.values()]


def _draw(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}\n{name}".encode(), digest_size=16).digest()


def _written(value: object) -> str:
    if isinstance(value, Iterable) and not isinstance(value, dict):
        value = list(value)
    return json.dumps(value, sort_keys=True, default=dict)
