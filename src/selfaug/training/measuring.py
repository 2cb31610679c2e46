"""How do the sums and counts of steps become logs, and an evaluation's metrics?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers import Trainer

from selfaug.step.meter import Meter
from selfaug.training.caching import CachingTrainer

if TYPE_CHECKING:
    from selfaug.objective.activation_terms import ActivationTerm

__all__ = ["MeasuringTrainer"]


class MeasuringTrainer(CachingTrainer):
    """`CachingTrainer` that logs the means of a method's terms.

    Its subclass sets the terms and ``_meters``, and calls ``_measure`` for each micro-batch.
    """

    _terms: Sequence[Any]
    _parameter_terms: Sequence[Any]
    _activation_term: ActivationTerm | None
    _meters: dict[str, Meter]

    def _meter(self) -> Meter:
        """Sums of the method's own terms are means over the positions that they act on."""
        over = {"response": "response_tokens", "held": "held_tokens"}
        own = [t for t in self._terms if t.where in over and t.term.name != "nll"]
        penalties = {term.name: "passes" for term in self._parameter_terms}
        if self._activation_term is not None:
            penalties[self._activation_term.name] = "aligned_tokens"
        return Meter({t.term.name: over[t.where] for t in own} | penalties)

    def _measure(self, mode: str, micro: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        groups = micro["groups"]
        aligned = groups["aligned"]["index"].numel() + groups["both"]["index"].numel()
        response = groups["response"]["index"].numel() + groups["both"]["index"].numel()
        held = 0
        if "held" in groups:
            # A drawn boundary is held too.
            held = groups["held"]["index"].numel() + groups["both"]["index"].numel()
            response += groups["held"]["index"].numel()
        sums = {**outputs["sums"], **outputs["penalties"]}
        if outputs["auxiliary"] is not None:
            sums["auxiliary"] = outputs["auxiliary"]
        counts = {
            "response_tokens": response,
            "aligned_tokens": aligned,
            "reference_tokens": micro["reference_tokens"],
            "tokens": micro["tokens"],
            "auxiliary_passes": int(outputs["auxiliary"] is not None),
            "held_tokens": held,
            "passes": 1,
        }
        self._meters[mode].add(sums, counts)
        if mode == "train":
            self._tokens_here += micro["tokens"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the averages since the last log."""
        if self.model.training:
            measured = self._drain("train")
            measured.pop("tokens", None)
            logs.update(measured)
            logs["num_tokens"] = self._num_tokens()
        Trainer.log(self, logs, start_time)

    def _drain(self, mode: str) -> dict[str, float]:
        return self._meters[mode].drain(
            self.accelerator.device, lambda values: self.accelerator.reduce(values, reduction="sum")
        )

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Report means over the whole set: ``nll``, ``alignment``, the method's own terms, and their weighted sum."""
        self._meters["eval"] = self._meter()
        output = super().evaluation_loop(*args, **kwargs)
        measured = self._drain("eval")
        prefix = kwargs.get("metric_key_prefix", "eval")
        own = [*(t.term.name for t in self._terms), *(term.name for term in self._parameter_terms)]
        if self._activation_term is not None:
            own.append(self._activation_term.name)
        for name in dict.fromkeys(("nll", "alignment", "entropy", "mean_token_accuracy", "aux_loss", *own)):
            if name in measured:
                output.metrics[f"{prefix}_{name}"] = measured[name]
        if "nll" in measured:
            terms = sum(t.weight * measured.get(t.term.name, 0.0) for t in self._terms)
            terms += sum(term.weight * measured[term.name] for term in self._parameter_terms)
            if self._activation_term is not None:
                terms += self._activation_term.weight * measured.get(self._activation_term.name, 0.0)
            auxiliary = self.router_aux_loss_coef * measured.get("aux_loss", 0.0)
            output.metrics[f"{prefix}_loss"] = terms + auxiliary
        return output
