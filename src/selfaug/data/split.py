"""Which examples are held out, so that no document is on both sides?"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from selfaug.data.record import Conversation, Item, Record
from selfaug.data.words import normalise
from selfaug.errors import ConfigError, DataError

__all__ = ["Split", "documents_of", "question_of", "split_by_document"]

Example: TypeAlias = Item | dict[str, Any]


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


def split_by_document(examples: Sequence[Example], fraction: float, seed: int = 0) -> Split:
    """About ``fraction`` of the examples held out, such that no document's text is on both sides, nor what is asked.

    Examples that share a document, or a question with its answer, belong together (up to case, spacing and
    punctuation): the groups are the connected components of the graph of examples and texts. Groups are taken whole, in
    an order drawn by ``seed`` from what they say: the split does not depend on the order of the examples.

    Args:
        examples: Records, conversations (without documents: by their first user message) or TRL's rows (by prompt).
        fraction: Of the examples, strictly between 0 and 1. At least one example is held out and one is not.
        seed: Another seed draws another split.

    Raises:
        ConfigError: If ``fraction`` is not between 0 and 1.
        DataError: If all examples belong together, or the groups are too large for the fraction.
    """
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise ConfigError(
            f"held_out={fraction!r} is not a fraction between 0 and 1, of the examples to hold out",
            "give a fraction such as 0.1, or 0 to hold nothing out.",
        )
    groups = _groups(examples)
    target = min(len(examples) - 1, max(1, math.floor(fraction * len(examples) + 0.5)))
    chosen: set[int] = set()
    for group in sorted(groups, key=lambda group: _draw(seed, group[0])):
        if len(chosen) + len(group[1]) <= target:
            chosen.update(group[1])
    if not chosen:
        # Every group is larger than the target: the smallest, where that leaves more to train on than it takes.
        smallest = min(groups, key=lambda group: (len(group[1]), _draw(seed, group[0])), default=("", []))[1]
        if 2 * len(smallest) > len(examples) or len(groups) < 2:
            raise DataError(
                f"{len(examples)} examples cannot be split by document: they form {len(groups)} groups that share a"
                f" document or what is asked, the largest of {max((len(g) for _, g in groups), default=0)}, and"
                f" {target} should be held out",
                "hold nothing out (--held_out 0) and give a held-out file of your own, or split before documents are"
                " retrieved (`selfaug prepare --corpus` does).",
            )
        chosen.update(smallest)
    return Split(
        [example for i, example in enumerate(examples) if i not in chosen],
        [example for i, example in enumerate(examples) if i in chosen],
        len(groups),
        frozenset(chosen),
    )


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


def _groups(examples: Sequence[Example]) -> list[tuple[str, list[int]]]:
    """Groups of places that belong together, each with the smallest of its texts as its name."""
    parent = list(range(len(examples)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first: dict[tuple[str, str], int] = {}
    names = []
    for i, example in enumerate(examples):
        texts = [("question", normalise(question_of(example)))]
        texts += [("document", normalise(text)) for text in documents_of(example)]
        names.append(min(text for _, text in texts))
        for text in texts:
            parent[root(i)] = root(first.setdefault(text, i))
    members: defaultdict[int, list[int]] = defaultdict(list)
    for i in range(len(examples)):
        members[root(i)].append(i)
    return [(min(names[i] for i in group), group) for group in members.values()]


def _draw(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}\n{name}".encode(), digest_size=16).digest()


def _written(value: object) -> str:
    if isinstance(value, Iterable) and not isinstance(value, dict):
        value = list(value)
    return json.dumps(value, sort_keys=True, default=dict)
