"""Logs and evaluation metrics: means of a method's terms from the sums and counts of micro-batches."""

from __future__ import annotations

from typing import Any

from selfaug.step.driver import StepOutputs
from selfaug.step.forward import StepObjective
from selfaug.step.meter import Meter

__all__ = ["Metrics"]


class Metrics:
    """Means of one phase (training or evaluation) since the last :meth:`take`.

    Args:
        objective: Objective of the run, whose terms are averaged.
        accelerator: Accelerator of the trainer, for sums over ranks.
        auxiliary_weight: Weight of a mixture of experts' load-balancing loss.
    """

    def __init__(self, objective: StepObjective, accelerator: Any, auxiliary_weight: float) -> None:
        self._objective, self._accelerator, self._auxiliary_weight = objective, accelerator, auxiliary_weight
        # Row terms are averaged over the positions that they act on, parameter terms over the micro-batches.
        over = {"response": "response_tokens", "compared": "compared_tokens", "aligned": "aligned_tokens"}
        divisors = {t.term.name: over[t.where] for t in objective.terms if t.term.name != "nll"}
        self._aligns = "alignment" in divisors
        divisors |= {term.name: "passes" for term in objective.parameter_terms}
        if objective.activation_term is not None:
            divisors[objective.activation_term.name] = "aligned_tokens"
        self._meter = Meter(divisors)

    def add(self, outputs: StepOutputs) -> None:
        """Add the outputs of a micro-batch."""
        passes = {"auxiliary_passes": int("auxiliary" in outputs.sums), "passes": 1}
        self._meter.add(outputs.sums, {**outputs.micro.counts, **passes})

    def take(self) -> dict[str, float]:
        """Return the means over all ranks (keys of :meth:`selfaug.step.meter.Meter.drain`), and start again."""
        measured = self._meter.drain(
            self._accelerator.device, lambda values: self._accelerator.reduce(values, reduction="sum")
        )
        if not self._aligns:
            measured.pop("alignment", None)
        return measured

    def take_evaluation(self, prefix: str) -> dict[str, float]:
        """Return the metrics of an evaluation: ``nll``, ``alignment``, the method's terms, and weighted ``loss``."""
        measured = self.take()
        weights = {t.term.name: t.weight for t in self._objective.terms}
        weights |= {term.name: term.weight for term in self._objective.parameter_terms}
        if self._objective.activation_term is not None:
            weights[self._objective.activation_term.name] = self._objective.activation_term.weight
        reported = dict.fromkeys(("nll", "alignment", "entropy", "mean_token_accuracy", "aux_loss", *weights))
        metrics = {f"{prefix}_{name}": measured[name] for name in reported if name in measured}
        if "nll" in measured:
            loss = sum(weight * measured.get(name, 0.0) for name, weight in weights.items())
            metrics[f"{prefix}_loss"] = loss + self._auxiliary_weight * measured.get("aux_loss", 0.0)
        return metrics
