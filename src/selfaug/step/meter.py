"""Meters of training: sums and counts between two logs, added up over micro-batches and ranks, divided once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["COUNTS", "Meter"]

# Counts of one micro-batch: the divisors of the averages, and the cost of the passes.
COUNTS = (
    "response_tokens",
    "aligned_tokens",
    "reference_tokens",
    "tokens",
    "auxiliary_passes",
    "compared_tokens",
    "passes",
)
_SUMS = ("nll", "alignment", "entropy", "correct", "auxiliary")


class Meter:
    """Sums of row terms and counts of tokens of one phase (training or evaluation).

    Sums stay on the device until they are read, so that adding to them does not wait for it.

    Args:
        divisors: Count by which each sum of a method's own terms is divided, by the name of the sum.
    """

    def __init__(self, divisors: Mapping[str, str] | None = None) -> None:
        self._divisors = dict(divisors or {})
        self._sums: dict[str, Tensor] = {}
        self._counts = dict.fromkeys(COUNTS, 0)
        self._since = time.perf_counter()

    def add(self, sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> None:
        """Add one micro-batch."""
        for name, value in sums.items():
            value = value.detach().to(torch.float32 if value.device.type == "mps" else torch.float64)
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        for name, count in counts.items():
            self._counts[name] += count

    def drain(self, device: torch.device, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the averages over all ranks since the last call, and start anew.

        Keys: ``nll``, ``alignment`` (nats a token; only where something was aligned), ``entropy`` (nats),
        ``mean_token_accuracy``, ``aux_loss``, ``aligned_tokens``, ``reference_tokens``, ``response_tokens``,
        ``tokens``, ``tokens_per_second`` (over all ranks); and the names of ``divisors``.

        Args:
            device: Device on which ranks add up their sums.
            total: Function that adds up a tensor over ranks.
        """
        names = [*_SUMS, *sorted({*self._sums, *self._divisors} - set(_SUMS))]
        dtype = torch.float32 if device.type == "mps" else torch.float64
        mine = [self._sums.get(name, torch.zeros(())).to(device, dtype) for name in names]
        counts = torch.tensor([self._counts[name] for name in COUNTS], dtype=dtype, device=device)
        values = total(torch.cat([torch.stack(mine), counts])).tolist()
        sums = dict(zip(names, values, strict=False))
        count = dict(zip(COUNTS, values[len(names) :], strict=True))
        seconds = time.perf_counter() - self._since
        self._sums, self._counts, self._since = {}, dict.fromkeys(COUNTS, 0), time.perf_counter()
        if not count["tokens"]:
            return {}
        whole = ("tokens", "response_tokens", "aligned_tokens", "reference_tokens")
        result: dict[str, float] = {name: round(count[name]) for name in whole}
        result["tokens_per_second"] = count["tokens"] / seconds
        if count["response_tokens"]:
            result["nll"] = sums["nll"] / count["response_tokens"]
            result["entropy"] = sums["entropy"] / count["response_tokens"]
            result["mean_token_accuracy"] = sums["correct"] / count["response_tokens"]
        if count["aligned_tokens"]:
            result["alignment"] = sums["alignment"] / count["aligned_tokens"]
        for name, divisor in self._divisors.items():
            if count[divisor]:
                result[name] = sums[name] / count[divisor]
        if count["auxiliary_passes"]:
            result["aux_loss"] = sums["auxiliary"] / count["auxiliary_passes"]
        return result
