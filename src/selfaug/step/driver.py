"""The step driver: plans optimiser steps for a `transformers.Trainer` and computes the loss of their micro-batches.

Our own trainer and :func:`selfaug.attach` both use it. It needs the trainer's accelerator, and calls from the two
methods in which a trainer sees the micro-batches of a whole step (`get_batch_samples`) and one of them
(`compute_loss`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from selfaug.planning.plan import StepPlan, plan_step
from selfaug.planning.reference_batch import ReferenceLayout
from selfaug.reference.cached import ReferenceCache
from selfaug.step.forward import StepObjective
from selfaug.step.micro_batch import MicroBatch, micro_batch

__all__ = ["KEY", "Draw", "StepDriver", "StepOutputs"]

KEY = "selfaug"
"""Key of the plan in a micro-batch, and keyword of the model's `forward` for it."""


@dataclass(frozen=True)
class Draw:
    """Settings of the draw of positions for the reference pass.

    Args:
        seed: Seed of the run.
        align_fraction: Probability in (0, 1] that a sequence is drawn.
        align_token_fraction: Probability in (0, 1] that an aligned token of a drawn sequence is drawn.
        align_boundary: Whether the last prompt position before a response is aligned.
        align: Whether prompt positions are aligned at all.
        compare_response: Whether the response positions of drawn sequences are compared with the reference.
        use_reference: Whether any term needs the reference; without one there is no reference pass.
        pad_token_id: Id of the padding token, as in :func:`selfaug.planning.plan.plan_step`.
    """

    seed: int
    align_fraction: float = 1.0
    align_token_fraction: float = 1.0
    align_boundary: bool = False
    align: bool = True
    compare_response: bool = False
    use_reference: bool = True
    pad_token_id: int | None = None


@dataclass(frozen=True)
class StepOutputs:
    """The results of a micro-batch.

    Args:
        loss: Share of the step's loss, with a graph; in training multiplied by the number of ranks, since DDP and FSDP
            average gradients.
        micro: Plan of the micro-batch.
        sums: Sums of row terms and values of parameter terms by name, detached.
    """

    loss: Tensor
    micro: MicroBatch
    sums: dict[str, Tensor]


class StepDriver:
    """Plans optimiser steps, and computes the loss of their micro-batches.

    Args:
        objective: Objective that is installed in the model.
        draw: Settings of the draw of positions.
        layout: Layout of the reference pass.
        accelerator: Accelerator of the trainer.
        sharded: Whether FSDP or ZeRO shard the weights, so that every rank must run the same forward passes.
        auxiliary_weight: Weight of a mixture of experts' load-balancing loss.
        cache: Reference cache that replaces the pass; ``None`` for none.
    """

    def __init__(
        self,
        objective: StepObjective,
        draw: Draw,
        layout: ReferenceLayout,
        accelerator: Any,
        *,
        sharded: bool = False,
        auxiliary_weight: float = 0.0,
        cache: ReferenceCache | None = None,
    ) -> None:
        self.objective, self.draw, self.layout = objective, draw, layout
        self.weigh: Callable[[Tensor, Tensor], Tensor] | None = None
        self._accelerator, self._sharded, self._cache = accelerator, sharded, cache
        self._auxiliary_weight = auxiliary_weight
        self._finite: Tensor | None = None
        self._nll: Tensor | None = None
        self._n_response = 0

    def take(self, batches: Sequence[Any], step: int, device: torch.device) -> Tensor:
        """Plan a step, put each micro-batch's plan into it, and return the step's response tokens over all ranks."""
        plan = self._plan(batches, self.draw, step, self.weigh)
        if self._accelerator.num_processes > 1:
            plan = plan.with_totals(self._accelerator.reduce(plan.counts().to(device), reduction="sum"))
        for batch, passes, micro in zip(batches, self._passes(plan), plan.micro, strict=True):
            batch[KEY] = self._micro(plan, micro, self.draw, passes=passes)
        self._n_response, self._nll = plan.n_response, None
        return torch.tensor(plan.n_response, device=device)

    def loss(self, model: Any, inputs: dict[str, Any], *, accumulated: int) -> StepOutputs:
        """Return the loss of a micro-batch.

        One without a plan, as in evaluation, counts as a whole step with all its aligned positions drawn.

        Args:
            model: Wrapped model, whose mode tells training from evaluation.
            inputs: Micro-batch; its plan is removed from it.
            accumulated: Number of micro-batches of the step.
        """
        micro: MicroBatch | None = inputs.pop(KEY, None)
        if micro is None:
            whole = replace(self.draw, align_fraction=1.0, align_token_fraction=1.0)
            plan = self._plan([inputs], whole, 0, None)
            # Ranks do not exchange plans in evaluation, so every rank runs a reference pass.
            plan = replace(plan, anywhere=(True,))
            micro = self._micro(plan, plan.micro[0], whole, passes=self._passes(plan)[0])
        outputs = model(**inputs, **{KEY: micro.to(inputs["input_ids"].device)})
        steps = accumulated if model.training else 1
        loss, sums = outputs["loss"], {**outputs["sums"], **outputs["penalties"]}
        if model.training:
            loss = loss * self._accelerator.num_processes
        if outputs["auxiliary"] is not None:
            # This loss is a mean over the micro-batch, so it is averaged over the accumulated ones, as in SFTTrainer.
            loss = loss + self._auxiliary_weight * outputs["auxiliary"] / steps
            sums["auxiliary"] = outputs["auxiliary"]
        for term in self.objective.parameter_terms:
            # Parameter terms do not depend on the data: they count once a step, and are equal on all ranks.
            loss = loss + term.weight * outputs["penalties"][term.name] / steps
        if model.training:
            finite = torch.isfinite(loss.detach())
            self._finite = finite if self._finite is None else self._finite & finite
            if "nll" in sums:
                self._nll = sums["nll"].detach() + (0 if self._nll is None else self._nll)
        return StepOutputs(loss, micro, sums)

    def step_nll(self) -> float | None:
        """Return the mean NLL of the step's response tokens (nats) over micro-batches and ranks; ``None`` without one.

        Every rank must call it, after the step's backward passes.
        """
        if not self._n_response:
            return None
        total = torch.zeros((), device=self._accelerator.device) if self._nll is None else self._nll
        if self._accelerator.num_processes > 1:
            total = self._accelerator.reduce(total.to(self._accelerator.device), reduction="sum")
        return float(total) / self._n_response

    def require_finite(self, step: int) -> None:
        """Check, before the optimiser step, that the losses of the step are finite on all ranks.

        Raises:
            FloatingPointError: If one is not; on every rank.
        """
        finite, self._finite = self._finite, None
        if finite is not None and self._accelerator.num_processes > 1:
            # All ranks must stop together: one that continued would hang in its next collective.
            finite = self._accelerator.reduce((~finite).to(torch.int64), reduction="sum") == 0
        if finite is not None and not bool(finite):
            raise FloatingPointError(f"the loss of step {step} is not finite; the weights are as they were before it")

    def _plan(self, batches: Sequence[Any], draw: Draw, step: int, weigh: Any) -> StepPlan:
        return plan_step(
            batches,
            seed=draw.seed,
            step=step,
            align_fraction=draw.align_fraction,
            align_token_fraction=draw.align_token_fraction,
            align_boundary=draw.align_boundary,
            reference_layout=replace(self.layout, cached=self._cache is not None),
            align=draw.align,
            compare_response=draw.compare_response,
            use_reference=draw.use_reference,
            weigh=weigh,
            pad_token_id=draw.pad_token_id,
        )

    def _passes(self, plan: StepPlan) -> list[int]:
        """Return the number of passes of each micro-batch on which the ranks of a sharded model agree; 0 elsewhere."""
        if not self._sharded or self._cache is not None:
            return [0] * len(plan.micro)
        if self.layout.slice is None:
            return [int(anywhere) for anywhere in plan.anywhere]
        own = [0 if micro.reference is None else micro.reference.passes for micro in plan.micro]
        at_least = [max(int(anywhere), passes) for anywhere, passes in zip(plan.anywhere, own, strict=True)]
        mine = torch.tensor([at_least], device=self._accelerator.device)
        most: list[int] = self._accelerator.gather(mine).amax(dim=0).tolist()
        return most

    def _micro(self, plan: StepPlan, micro: Any, draw: Draw, *, passes: int) -> MicroBatch:
        return micro_batch(
            micro,
            n_response=plan.n_response,
            drawn_divisor=draw.align_fraction * draw.align_token_fraction * plan.n_aligned,
            compared_divisor=draw.align_fraction * plan.n_response,
            passes=passes,
            stored=None if self._cache is None else self._cache.load,
        )
