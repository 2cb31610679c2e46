"""How does a new model learn to look things up? Drills of random tokens, where nothing else helps.

Two kinds, both of tokens drawn alike from the whole vocabulary: a row written twice, and keys with values that are
asked for again. Only who looks back for the same tokens and reads on from there is right; nothing can be learnt by
heart, or from the kind of a word. Text teaches the same far more slowly: there, guessing pays for a long time.
"""

from __future__ import annotations

import random
from collections.abc import Callable

__all__ = ["draw"]

_REPEATED = 0.4  # of the drills
_ROW = (4, 40)  # tokens of a row that is repeated
_PAIRS = (2, 12)
_QUESTIONS = 8


def draw(rng: random.Random, first: int, vocabulary: int) -> tuple[list[int], list[bool]]:
    """Token ids in ``first .. vocabulary - 1``, and of each whether it can be known from what was read before it."""
    if rng.random() < _REPEATED:
        row = [rng.randrange(first, vocabulary) for _ in range(rng.randint(*_ROW))]
        # The first token of the second time comes without a sign.
        return row * 2, [False] * (len(row) + 1) + [True] * (len(row) - 1)
    return _recall(rng, lambda: rng.randrange(first, vocabulary))


def _recall(rng: random.Random, token: Callable[[], int]) -> tuple[list[int], list[bool]]:
    """Keys of one to three tokens and their values, then some keys again. Keys share tokens, so that no single one of
    them tells the value.
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
