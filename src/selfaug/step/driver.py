"""The step driver: plans optimiser steps for a `transformers.Trainer` and computes the loss of their micro-batches.

Our own trainer and :func:`selfaug.attach` both use it. It needs the trainer's accelerator, and calls from the two
methods in which a trainer sees the micro-batches of a whole step (`get_batch_samples`) and one of them
(`compute_loss`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from selfaug.common.ranks import begin_reduce
from selfaug.planning.plan import BatchPositions, MicroPlan, StepPlan, plan_step, read_batch
from selfaug.planning.reference_batch import ReferenceLayout
from selfaug.reference.cached import ReferenceCache
from selfaug.step.forward import StepObjective
from selfaug.step.micro_batch import MicroBatch, micro_batch

logger = logging.getLogger(__name__)

__all__ = ["KEY", "Draw", "ReadingCollator", "StepDriver", "StepOutputs"]

KEY = "selfaug"
"""Key in a micro-batch of what a collator read, then of the plan; and keyword of the model's `forward` for the plan."""

# The inputs that decide the plan.
_PLANNED = ("input_ids", "labels", "attention_mask", "position_ids")


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


class ReadingCollator:
    """A collator whose micro-batches carry what the plan needs of them, read before they are placed on a device.

    It runs in the data loader's workers, where there are any.

    Args:
        collate: Collator that makes the micro-batches.
        draw: Settings of the plan.
    """

    def __init__(self, collate: Callable[[Any], Any], draw: Draw) -> None:
        self._collate, self._draw = collate, draw

    def __call__(self, rows: Any) -> Any:
        """Return the collated micro-batch with its positions."""
        batch = self._collate(rows)
        batch[KEY] = read_batch(batch, self._draw.align_boundary, self._draw.pad_token_id)
        return batch


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
        self._finite_on_host: _HostCopy | None = None
        self._nll: Tensor | None = None
        self._n_response = 0
        self._shift: Tensor | None = None
        self._shift_on_host: _HostCopy | None = None
        self._n_drawn = 0
        self._counted = False

    def take(self, batches: Sequence[Any], step: int) -> Tensor:
        """Plan a step, put each micro-batch's plan into it, and return the step's response tokens over all ranks.

        The counts of the ranks are added up while the micro-batches are put together. Nothing waits for the device
        where a :class:`ReadingCollator` made the micro-batches; else they are copied to the CPU, all at once.
        """
        positions = self._positions(batches, self.draw)
        if not self._counted:
            self._counted = True
            _tell_few(positions, self.draw, self._accelerator)
        plan = self._plan(batches, positions, self.draw, step, self.weigh)
        total = begin_reduce(plan.counts()) if self._accelerator.num_processes > 1 else None
        grouped = [self._grouped(micro) for micro in plan.micro]
        if total is not None:
            plan = plan.with_totals(total())
        for batch, passes, micro in zip(batches, self._idle_passes(plan), grouped, strict=True):
            batch[KEY] = self._divided(plan, micro, self.draw, passes)
        self._n_response, self._nll = plan.n_response, None
        self._n_drawn, self._shift, self._shift_on_host = 0, None, None
        return torch.tensor(plan.n_response)

    def loss(self, model: Any, inputs: dict[str, Any], *, accumulated: int) -> StepOutputs:
        """Return the loss of a micro-batch.

        One without a plan, as in evaluation, counts as a whole step with all its aligned positions drawn.

        Args:
            model: Wrapped model, whose mode tells training from evaluation.
            inputs: Micro-batch; its plan is removed from it.
            accumulated: Number of micro-batches of the step.
        """
        if not isinstance(inputs.get(KEY), MicroBatch):
            whole = replace(self.draw, align_fraction=1.0, align_token_fraction=1.0)
            plan = self._plan([inputs], self._positions([inputs], whole), whole, 0, None)
            # Ranks do not exchange plans in evaluation, so every rank runs a reference pass.
            plan = replace(plan, anywhere=(True,))
            inputs[KEY] = self._divided(plan, self._grouped(plan.micro[0]), whole, self._idle_passes(plan)[0])
        micro: MicroBatch = inputs.pop(KEY)
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
            self._finite_on_host = _HostCopy(self._finite)
            if "nll" in sums:
                self._nll = sums["nll"].detach() + (0 if self._nll is None else self._nll)
            self._n_drawn += micro.counts["aligned_tokens"]
            if "alignment" in sums:
                self._shift = sums["alignment"].detach() + (0 if self._shift is None else self._shift)
                self._shift_on_host = _HostCopy(self._shift)
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

    def step_shift(self) -> tuple[float, int]:
        """Return the step's sum of the alignment (nats) over drawn tokens of all ranks, and the number of these.

        Every rank must call it, after the step's forward passes. The host waits as in :meth:`require_finite`.
        """
        nats = 0.0 if self._shift_on_host is None else float(self._shift_on_host.read())
        totals = torch.tensor([nats, self._n_drawn], dtype=torch.float64)
        if self._accelerator.num_processes > 1:
            totals = begin_reduce(totals)()
        return float(totals[0]), int(totals[1])

    def require_finite(self, step: int) -> None:
        """Check, before the optimiser step, that the losses of the step are finite on all ranks.

        The host waits for the last forward pass, behind which the device has the backward pass to go on with.

        Raises:
            FloatingPointError: If one is not; on every rank.
        """
        copy, self._finite, self._finite_on_host = self._finite_on_host, None, None
        finite = copy is None or bool(copy.read())
        if self._accelerator.num_processes > 1:
            # All ranks must stop together: one that continued would hang in its next collective.
            finite = not begin_reduce(torch.tensor(int(not finite)))()
        if not finite:
            raise FloatingPointError(f"the loss of step {step} is not finite; the weights are as they were before it")

    def _plan(
        self, batches: Sequence[Any], positions: list[BatchPositions], draw: Draw, step: int, weigh: Any
    ) -> StepPlan:
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
            positions=positions,
        )

    def _positions(self, batches: Sequence[Any], draw: Draw) -> list[BatchPositions]:
        found = [batch.get(KEY) for batch in batches]
        if all(isinstance(each, BatchPositions) for each in found):
            return found
        return [read_batch(batch, draw.align_boundary, draw.pad_token_id) for batch in _on_host(batches)]

    def _grouped(self, micro: MicroPlan) -> MicroBatch:
        return micro_batch(micro, stored=None if self._cache is None else self._cache.load)

    def _idle_passes(self, plan: StepPlan) -> list[int]:
        """Return how many passes this rank of a sharded model has less than the others, of each micro-batch."""
        if not self._sharded or self._cache is not None:
            return [0] * len(plan.micro)
        own = [0 if micro.reference is None else micro.reference.passes for micro in plan.micro]
        most = [int(anywhere) for anywhere in plan.anywhere]
        if self.layout.slice is not None:
            at_least = [max(pair) for pair in zip(most, own, strict=True)]
            most = begin_reduce(torch.tensor(at_least), "max")().tolist()
        return [max(0, passes - mine) for passes, mine in zip(most, own, strict=True)]

    def _divided(self, plan: StepPlan, micro: MicroBatch, draw: Draw, idle_passes: int) -> MicroBatch:
        return micro.divided(
            n_response=plan.n_response,
            drawn_divisor=draw.align_fraction * draw.align_token_fraction * plan.n_aligned,
            compared_divisor=draw.align_fraction * plan.n_response,
            idle_passes=idle_passes,
        )


def _tell_few(positions: Sequence[BatchPositions], draw: Draw, accelerator: Any) -> None:
    """Warn where fewer than two sequences of a step are aligned in the mean, by the sequences of the first one."""
    if not draw.align or draw.align_fraction == 1 or not accelerator.is_main_process:
        return
    own = sum(bool(each.aligned_BT[row, start:end].any()) for each in positions for row, start, end in each.bounds)
    sequences = own * accelerator.num_processes
    if 0 < draw.align_fraction * sequences < 2:
        logger.warning(
            "align_fraction=%g aligns %.2g of the %d sequences of a step in the mean; with fewer than two, less is "
            "retained, and far less below one. Give %.2g, or more sequences a step (batch size, accumulation, ranks).",
            draw.align_fraction, draw.align_fraction * sequences, sequences, min(1.0, 2 / sequences),
        )  # fmt: skip


def _on_host(batches: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what the plan needs of micro-batches on the CPU, copied at once: one wait for the device, not several."""
    found: list[dict[str, Any]] = [{} for _ in batches]
    inputs = []
    for number, batch in enumerate(batches):
        for name in _PLANNED:
            tensor = batch.get(name)
            if tensor is not None and tensor.dim() == 4:  # a mask of all pairs of tokens
                found[number][name] = tensor.cpu()
            elif tensor is not None:
                inputs.append((number, name, tensor))
    if not inputs:
        return found
    flat = torch.cat([tensor.reshape(-1).to(torch.int64) for _, _, tensor in inputs]).cpu()
    parts = flat.split([tensor.numel() for _, _, tensor in inputs])
    for (number, name, tensor), part in zip(inputs, parts, strict=True):
        found[number][name] = part.view(tensor.shape)
    return found


class _HostCopy:
    """A copy of a tensor to the host that is under way behind what the device has been given so far."""

    def __init__(self, tensor: Tensor) -> None:
        self._copy, self._event = tensor.to("cpu", non_blocking=True), None
        if tensor.device.type != "cpu":
            module = torch.get_device_module(tensor.device)
            self._event = module.Event()
            self._event.record(module.current_stream(tensor.device))

    def read(self) -> Tensor:
        """Return the copy, waiting for it alone and not for what the device was given after it."""
        if self._event is not None:
            self._event.synchronize()
        return self._copy
