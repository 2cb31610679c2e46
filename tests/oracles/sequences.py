"""Sequences for the oracle of the step, with every shape of labels that real data sets have.

Token ids are a function of the seed. Lengths differ, so padding, packing and block boundaries all matter.
"""

from __future__ import annotations

import random

from tests.oracles.step import IGNORED, Sequence_

# Numbers of tokens: (prompt, response, prompt, ...).
SINGLE_TURN = ((9, 4), (17, 5), (5, 1), (12, 7), (3, 6), (14, 2))
MULTI_TURN = ((7, 3, 5, 2), (4, 1, 1, 5, 6, 3), (11, 4), (2, 2, 9, 1))
# One ends in a user turn (a packed neighbour follows a prompt token), one has no prompt, one no response.
ODD_SHAPES = ((8, 3, 4), (0, 6), (10,), (1, 1), (6, 2))


def sequences(shapes: tuple[tuple[int, ...], ...], vocab: int = 97, seed: int = 0) -> tuple[Sequence_, ...]:
    """Return (input_ids, labels) for each shape; ids avoid the special tokens 0, 1 and 2."""
    draw = random.Random(seed)
    made = []
    for shape in shapes:
        ids: list[int] = []
        labels: list[int] = []
        for turn, length in enumerate(shape):
            tokens = [draw.randrange(3, vocab) for _ in range(length)]
            ids += tokens
            labels += tokens if turn % 2 else [IGNORED] * length
        made.append((ids, labels))
    return tuple(made)
