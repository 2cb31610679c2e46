"""The train/held-out split, with no document on both sides."""

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
    """Which examples are held out.

    Args:
        places: Their places in the data set.
        groups: How many groups of examples that belong together there were.
        examples: How many examples there were.
    """

    places: frozenset[int]
    groups: int
    examples: int


@dataclass(frozen=True)
class Split:
    """Two parts of a data set, each in the data set's order.

    Args:
        train: What is trained on.
        held_out: What is not.
        groups: How many groups of examples that belong together there were.
        held_out_places: The places of the held-out examples in the data set.
    """

    train: list[Example]
    held_out: list[Example]
    groups: int
    held_out_places: frozenset[int]


def split_by_document(
    examples: Sequence[Example], fraction: float, seed: int = 0, keys: Sequence[Collection[str]] = ()
) -> Split:
    """About ``fraction`` of the examples held out, such that no document's text is on both sides, nor what is asked.

    Examples that share a document, or a question with its answer, belong together (up to case, spacing and
    punctuation): the groups are the connected components of the graph of examples and texts. Groups are taken whole, in
    an order drawn by ``seed`` from what they say: the split does not depend on the order of the examples.

    Args:
        examples: Records, conversations (without documents: by their first user message) or TRL's rows (by prompt).
        fraction: Of the examples, strictly between 0 and 1. At least one example is held out and one is not.
        seed: Another seed draws another split.
        keys: What else ties examples together, such as titles: a set of texts for each example. Examples with an equal
            text belong together.

    Raises:
        ConfigError: If ``fraction`` is not between 0 and 1.
        DataError: If all examples belong together, or the groups are too large for the fraction.
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
    """The places that :func:`split_by_document` holds out; the examples are gone through once, and none is kept."""
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
        # Every group is larger than the target: the smallest, where that leaves more to train on than it takes.
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
    """What each character becomes in :func:`plain`; filled as characters are met."""

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
    """A text without what may differ between two copies: case, width, spacing and punctuation.

    It is a rule of its own, and not that by which answers are scored: what a run held out is drawn from it, and must
    come out the same when the run is evaluated later. A text of punctuation alone is kept as it is.
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().translate(_SIGNS).split()) or text.strip()


def documents_of(example: Example) -> list[str]:
    """The texts of an example's documents."""
    return [] if isinstance(example, dict) else [document.text for document in example.documents]


def question_of(example: Example) -> str:
    """What an example asks: its question, its first user message, or what TRL would use as the prompt.

    A record with documents is told from others by question and answer: "What is this text about?" may be asked of every
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
    """The titles of an example's documents."""
    return [] if isinstance(example, dict) else [document.title for document in example.documents if document.title]


def asked_of(example: Example) -> str:
    """The question alone, without the answer that :func:`question_of` may add."""
    return example.question if isinstance(example, Record) else question_of(example)


def row_of(example: Example) -> list[str]:
    """The texts that make an example, without its documents: what is asked and what is answered."""
    if isinstance(example, Record):
        return [example.system or "", example.question, *example.answers]
    return [_written(example.messages if isinstance(example, Conversation) else example)]


def _groups(examples: Iterable[Example], keys: Sequence[Collection[str]]) -> list[tuple[str, list[int]]]:
    """Groups of places that belong together, each with the smallest of its texts as its name."""
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
