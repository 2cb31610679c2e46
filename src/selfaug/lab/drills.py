"""Drills of random tokens, which teach a new model to look things up in its context.

There are two kinds, both with tokens drawn uniformly from the vocabulary: a row that is repeated, and keys with values
that are asked again. They can be predicted only by finding the same tokens in the context and reading on from there,
not by heart or from kinds of words. Text teaches this far more slowly, since guessing pays there for a long time.
"""

from __future__ import annotations

import random
from collections.abc import Callable

__all__ = ["draw"]

_REPEATED = 0.4  # share of repeated rows among the drills
_ROW = (4, 40)  # range of the number of tokens of a repeated row
_PAIRS = (2, 12)
_QUESTIONS = 8


def draw(rng: random.Random, first: int, vocabulary: int) -> tuple[list[int], list[bool]]:
    """Return token ids in ``first .. vocabulary - 1``, and for each whether the tokens before it determine it."""
    if rng.random() < _REPEATED:
        row = [rng.randrange(first, vocabulary) for _ in range(rng.randint(*_ROW))]
        # Nothing announces the repetition, so its first token cannot be predicted.
        return row * 2, [False] * (len(row) + 1) + [True] * (len(row) - 1)
    return _recall(rng, lambda: rng.randrange(first, vocabulary))


def _recall(rng: random.Random, token: Callable[[], int]) -> tuple[list[int], list[bool]]:
    """Return keys of one to three tokens with their values, then some keys again.

    Keys share tokens, so that no single token determines the value.
    """
    length, pairs = rng.randint(1, 3), rng.randint(*_PAIRS)
    parts = [[token() for _ in range(pairs if length == 1 else rng.randint(3, 5))] for _ in range(length)]
    keys = list({tuple(rng.choice(part) for part in parts) for _ in range(pairs)})
    between, end = [token() for _ in range(rng.randint(0, 2))], token()
    values = {key: [*(token() for _ in range(rng.randint(1, 3))), end] for key in keys}
    ids: list[int] = []
    known: list[bool] = []
    for number, key in enumerate([*keys, *rng.choices(keys, k=_QUESTIONS)]):
        ids += [*key, *between]
        known += [False] * (len(ids) - len(known))
        ids += values[key]
        known += [number >= len(keys)] * (len(ids) - len(known))
    return ids, known
