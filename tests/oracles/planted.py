"""Planted mistakes: the gradient of a step with one known mistake each.

Each entry is the oracle of the step with one wrong choice, given as arguments to `step_gradient`. It shows that a
comparison is sensitive to that mistake: sequences on which a mistake does not change the gradient prove nothing about
it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tests.oracles.step import IGNORED, Gradients, Positions, Sequence_, positions, step_gradient


@dataclass(frozen=True)
class Step:
    """The arguments of one correct step."""

    base: Callable[[], torch.nn.Module]
    tuned: torch.nn.Module
    sequences: tuple[Sequence_, ...]
    alpha: float = 2.0
    direction: str = "base_to_tuned"
    align_boundary: bool = False
    align_fraction: float = 1.0
    drawn: tuple[int, ...] | dict[int, list[int]] | None = None

    def gradient(self, **find: Any) -> tuple[float, Gradients]:
        return step_gradient(
            self.base,
            self.tuned,
            self.sequences,
            self.alpha,
            self.direction,
            self.align_boundary,
            self.align_fraction,
            self.drawn,
            **find,
        )


def direction_swapped(step: Step) -> Gradients:
    swap = {"base_to_tuned": "tuned_to_base", "tuned_to_base": "base_to_tuned", "jsd": "base_to_tuned"}
    return replace(step, direction=swap[step.direction]).gradient()[1]


def boundary_shifted(step: Step) -> Gradients:
    """Align by labels[t] alone, as if logits at t predicted token t: the release's unshifted mask."""
    return replace(step, align_boundary=not step.align_boundary).gradient()[1]


def labels_unshifted(step: Step) -> Gradients:
    """Shift the response mask by one token, so that the position that predicts the first response token is lost."""

    def late(labels: Sequence[int], align_boundary: bool) -> Positions:
        right = positions(labels, align_boundary)
        return Positions(right.aligned, [t for t in right.targets if labels[t] != IGNORED])

    return step.gradient(find=late)[1]


def padding_aligned(step: Step, pad: int = 0) -> Gradients:
    """Pad every sequence to the longest with label -100, and treat padding as prompt."""
    longest = max(len(ids) for ids, _ in step.sequences)
    padded = tuple(
        (ids + [pad] * (longest - len(ids)), labels + [IGNORED] * (longest - len(labels)))
        for ids, labels in step.sequences
    )
    assert any(len(ids) != longest for ids, _ in step.sequences), "nothing is padded"
    return replace(step, sequences=padded).gradient()[1]


def neighbours_aligned(step: Step) -> Gradients:
    """Let the last token of a document predict the first token of the next one in its packed row."""

    def across(labels: Sequence[int], align_boundary: bool) -> Positions:
        right = positions(labels, align_boundary)
        last = len(labels) - 1
        return Positions([*right.aligned, last] if labels[last] == IGNORED else right.aligned, right.targets)

    assert any(labels[-1] == IGNORED for _, labels in step.sequences[:-1]), "no document ends in a prompt token"
    return step.gradient(find=across)[1]


def drawn_divisor(step: Step) -> Gradients:
    """Divide by the aligned tokens of the drawn sequences instead of f times those of all sequences."""
    assert isinstance(step.drawn, tuple)
    counts = [len(positions(labels, step.align_boundary).aligned) for _, labels in step.sequences]
    wrong = sum(counts[i] for i in step.drawn) / sum(counts)
    return replace(step, align_fraction=wrong).gradient()[1]


def adapter_in_reference(step: Step) -> Gradients:
    """Leave the adapter on in the reference pass, which compares the model with itself."""
    return replace(step, base=lambda: step.tuned).gradient()[1]


def rank_keyed_draw(step: Step) -> Gradients:
    """Take another rank's draw: the sequences that were not drawn."""
    assert step.drawn is not None
    other = tuple(i for i in range(len(step.sequences)) if i not in step.drawn)
    return replace(step, drawn=other).gradient()[1]


PLANTED: dict[str, Callable[[Step], Gradients]] = {
    "direction swapped": direction_swapped,
    "boundary shifted by one": boundary_shifted,
    "labels not shifted": labels_unshifted,
    "padding aligned": padding_aligned,
    "packed neighbours aligned": neighbours_aligned,
    "drawn count as divisor": drawn_divisor,
    "adapter on in the reference pass": adapter_in_reference,
    "rank-keyed draw": rank_keyed_draw,
}
