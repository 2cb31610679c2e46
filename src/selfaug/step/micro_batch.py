"""The micro-batch: the part of the step's plan that one call of the model needs, as a frozen record.

Shapes: N positions of a group. Positions index the flattened rows of the micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from selfaug.planning.plan import MicroPlan
from selfaug.planning.reference_batch import LongPrompt, Stored

__all__ = ["MicroBatch", "Positions", "micro_batch"]


@dataclass(frozen=True)
class Positions:
    """A group of positions with the same terms.

    Args:
        index_N: Indices in the hidden states of the training pass.
        label_N: Tokens that the positions predict.
        weight_N: Weights of the positions; ``None`` where all are equal.
        reference_N: Indices in the hidden states of the reference pass; ``None`` where there is none.
    """

    index_N: Tensor
    label_N: Tensor | None = None
    weight_N: Tensor | None = None
    reference_N: Tensor | None = None

    def __len__(self) -> int:
        return self.index_N.numel()


@dataclass(frozen=True)
class MicroBatch:
    """The part of the step's plan that one call of the model needs.

    Args:
        response: Response positions that are in no other group.
        aligned: Drawn aligned positions.
        both: Positions that are aligned and predict a response token: aligned boundaries.
        compared: Response positions of drawn sequences, which are compared with the reference; ``None`` for none.
        per_response: 1 / response tokens of the whole step.
        per_aligned: 1 / (``align_fraction · align_token_fraction`` · aligned tokens of the whole step), or 0.
        per_compared: 1 / (``align_fraction`` · response tokens of the whole step), or 0.
        reference: Inputs of the reference pass; ``None`` for those of the micro-batch, or without a pass.
        hidden: Hidden states of the reference from a cache; ``None`` without one.
        long: Prompts that run through the reference pass one by one, in slices.
        has_reference: Whether anything is drawn.
        idle_passes: Number of passes on one token that this rank adds to its reference pass, because a rank of a
            sharded model that ran fewer than the others would deadlock them.
        counts: Numbers of tokens by the names of :data:`selfaug.step.meter.COUNTS`.
    """

    response: Positions
    aligned: Positions
    both: Positions
    compared: Positions | None
    per_response: float
    per_aligned: float
    per_compared: float
    reference: Mapping[str, Any] | None
    hidden: Tensor | None
    long: tuple[LongPrompt, ...]
    has_reference: bool
    idle_passes: int
    counts: Mapping[str, int]

    def aligned_places(self) -> tuple[Tensor, Tensor | None]:
        """Return the indices of all drawn aligned positions in the training pass, and in the reference pass if any."""
        parts = (self.aligned, self.both)
        reference = [part.reference_N for part in parts if part.reference_N is not None]
        return torch.cat([part.index_N for part in parts]), torch.cat(reference) if reference else None

    def divided(
        self, *, n_response: int, drawn_divisor: float, compared_divisor: float = 0.0, idle_passes: int = 0
    ) -> MicroBatch:
        """Return the same micro-batch with the divisors of the whole step.

        Args:
            n_response: Number of response tokens of the whole step.
            drawn_divisor: ``align_fraction · align_token_fraction · n_aligned`` of the whole step.
            compared_divisor: ``align_fraction · n_response`` of the whole step.
            idle_passes: Number of calls of the model that other ranks' reference passes have more.
        """
        return replace(
            self,
            per_response=1.0 / max(n_response, 1),
            per_aligned=1.0 / drawn_divisor if drawn_divisor > 0 else 0.0,
            per_compared=1.0 / compared_divisor if compared_divisor > 0 else 0.0,
            idle_passes=idle_passes,
        )

    def to(self, device: torch.device) -> MicroBatch:
        """Return the same micro-batch with every tensor on ``device`` that is used there; nothing waits for it."""
        return replace(self, **{field.name: _to(getattr(self, field.name), device) for field in fields(self)})


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        # From memory that the system may move, even a copy in the background can wait for the device.
        return (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)
    if isinstance(value, LongPrompt):  # its positions say what a slice keeps, which the host must know
        return replace(value, input_ids_T=_to(value.input_ids_T, device))
    if isinstance(value, Positions):
        return replace(value, **{field.name: _to(getattr(value, field.name), device) for field in fields(value)})
    if isinstance(value, Mapping):
        return {name: _to(one, device) for name, one in value.items()}
    return tuple(_to(one, device) for one in value) if isinstance(value, tuple) else value


def micro_batch(micro: MicroPlan, *, stored: Callable[[Sequence[Stored]], Tensor] | None = None) -> MicroBatch:
    """Group the positions of a micro-batch's plan by their terms, on the CPU; without divisors, all of which are 0.

    Args:
        micro: Plan of the micro-batch.
        stored: Function that reads hidden states from a reference cache, where there is one.
    """
    reference = micro.reference
    is_compared = torch.zeros_like(micro.response_N, dtype=torch.bool)
    served_N = micro.aligned_N
    if micro.compared_N is not None:
        is_compared = torch.isin(micro.response_N, micro.compared_N)
        served_N = torch.cat([micro.aligned_N, micro.compared_N]).unique()
    is_aligned = torch.isin(micro.response_N, micro.aligned_N)

    def in_reference(index_N: Tensor) -> Tensor | None:
        # Positions rise in all lists, so common ones have the same order in both.
        return None if reference is None else reference.index_N[torch.isin(served_N, index_N)]

    def response(chosen: Tensor, *, served: bool = True) -> Positions:
        index_N = micro.response_N[chosen]
        weight_N = None if micro.weight_N is None else micro.weight_N[chosen]
        return Positions(index_N, micro.label_N[chosen], weight_N, in_reference(index_N) if served else None)

    in_prompt = ~torch.isin(micro.aligned_N, micro.response_N)
    aligned_N = micro.aligned_N[in_prompt]
    return MicroBatch(
        response=response(~is_aligned & ~is_compared, served=False),
        aligned=Positions(aligned_N, micro.prompt_N[in_prompt], reference_N=in_reference(aligned_N)),
        both=response(is_aligned),
        compared=None if micro.compared_N is None else response(~is_aligned & is_compared),
        per_response=0.0,
        per_aligned=0.0,
        per_compared=0.0,
        reference=None if reference is None else reference.inputs,
        hidden=None if reference is None or reference.stored is None or stored is None else stored(reference.stored),
        long=() if reference is None else reference.long,
        has_reference=reference is not None,
        idle_passes=0,
        counts={
            "response_tokens": micro.response_N.numel(),
            "aligned_tokens": micro.aligned_N.numel(),
            "compared_tokens": 0 if micro.compared_N is None else micro.compared_N.numel(),
            "reference_tokens": 0 if reference is None else reference.tokens,
            "tokens": micro.tokens,
        },
    )
