"""How do both passes and the objective happen inside one call of the wrapped model?

Distributed wrappers gather weights and register gradient hooks around a call of the model. So the model's own
`forward` gets one more keyword, `selfaug`: with it, the call runs the reference pass, the training pass and the
objective, and returns the loss and its parts; without it, the forward is the original one.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from selfaug.model.libraries import gathered_head
from selfaug.model.parts import auxiliary_loss, body_of, head_of
from selfaug.objective import LMHead, Objective, Rows, RowTerm, WeightedTerm, plain, sweep
from selfaug.objective.activation_terms import Activations, ActivationTerm
from selfaug.objective.parameter_terms import ParameterTerm
from selfaug.reference import Reference
from selfaug.reference.passes import prompts_hidden
from selfaug.step.plan import MicroPlan
from selfaug.step.reference_batch import Stored

__all__ = ["StepObjective", "TermOn", "install", "micro_inputs"]

# Left out by `torch.compile` of the model: its blocks change with every batch, and it has kernels of its own.
_untraced_sweep: Callable[..., Objective] = torch.compiler.disable(sweep)


@dataclass(frozen=True)
class TermOn:
    """A row term of a method, the positions it acts on, and its weight in the loss.

    Positions: ``response`` (all), ``held`` (response positions of drawn sequences, with the reference), ``aligned``.
    """

    term: RowTerm
    where: str
    weight: float


def micro_inputs(
    micro: MicroPlan,
    *,
    n_response: int,
    drawn_divisor: float,
    join_reference: bool,
    held_divisor: float = 0.0,
    stored: Callable[[Sequence[Stored]], Tensor] | None = None,
) -> dict[str, Any]:
    """What one call of the model needs of the plan, as tensors and numbers that any wrapper can carry.

    Positions are sorted into groups here, on the CPU: response rows, aligned rows, and rows that are both (an aligned
    boundary predicts a response token too).

    Args:
        micro: Of this micro-batch.
        n_response: Response tokens of the whole step.
        drawn_divisor: ``align_fraction · align_token_fraction · n_aligned`` of the whole step.
        join_reference: Run the reference pass on one token although nothing is drawn here (sharded models: a rank that
            skips a forward deadlocks the others).
        held_divisor: ``align_fraction · n_response`` of the whole step.
        stored: Reads hidden states from a reference cache, where there is one.
    """
    reference = micro.reference
    held = _held_rows(micro)
    in_aligned = torch.isin(micro.response_N, micro.aligned_N)
    in_response = torch.isin(micro.aligned_N, micro.response_N)
    groups = {
        "response": {"index": micro.response_N[~in_aligned & ~held], "label": micro.label_N[~in_aligned & ~held]},
        "aligned": {"index": micro.aligned_N[~in_response]},
        "both": {"index": micro.response_N[in_aligned], "label": micro.label_N[in_aligned]},
    }
    if micro.held_N is not None:
        groups["held"] = {"index": micro.response_N[~in_aligned & held], "label": micro.label_N[~in_aligned & held]}
    if micro.weight_N is not None:
        for name in groups.keys() - {"aligned"}:
            groups[name]["weight"] = micro.weight_N[torch.isin(micro.response_N, groups[name]["index"])]
    if reference is not None:
        # Positions rise in all lists, so the n-th common one here is the n-th common one there.
        compared_N = micro.aligned_N
        if micro.held_N is not None:
            compared_N = torch.cat([micro.aligned_N, micro.held_N]).unique()
        for name in groups.keys() - {"response"}:
            groups[name]["reference"] = reference.index_N[torch.isin(compared_N, groups[name]["index"])]
    return {
        "groups": groups,
        "per_response": 1.0 / max(n_response, 1),
        "per_aligned": 1.0 / drawn_divisor if drawn_divisor > 0 else 0.0,
        "per_held": 1.0 / held_divisor if held_divisor > 0 else 0.0,
        "reference": None if reference is None else reference.inputs,
        # In place of a pass, where they are on disk.
        "hidden": None if reference is None or reference.stored is None or stored is None else stored(reference.stored),
        "long": [] if reference is None else [{"ids": p.input_ids_T, "index": p.index_N} for p in reference.long],
        "has_reference": reference is not None,
        "join_reference": join_reference and reference is None,
        "reference_tokens": 0 if reference is None else reference.tokens,
        "tokens": micro.tokens,
    }


def _held_rows(micro: MicroPlan) -> Tensor:
    if micro.held_N is None:
        return torch.zeros_like(micro.response_N, dtype=torch.bool)
    return torch.isin(micro.response_N, micro.held_N)


class StepObjective:
    """The computation of one micro-batch: which terms, against which reference, with how much memory.

    Args:
        terms: Of the method.
        reference: ``None`` where no term needs one.
        block_bytes: For the sweep; ``None`` for the device's default.
        implementation: One of `IMPLEMENTATIONS`.
        auxiliary: Whether a mixture of experts' load-balancing loss is wanted.
        parameter_terms: Of the method.
        activation_term: Of the method.
        slice_tokens: Tokens of a slice of the prompts that the plan calls long.
    """

    def __init__(
        self,
        terms: Sequence[TermOn],
        reference: Reference | None,
        *,
        block_bytes: int | None = None,
        implementation: str = "sweep",
        auxiliary: bool = False,
        parameter_terms: Sequence[ParameterTerm] = (),
        activation_term: ActivationTerm | None = None,
        slice_tokens: int | None = None,
    ) -> None:
        self.terms, self.reference, self.block_bytes = tuple(terms), reference, block_bytes
        self.implementation, self.auxiliary, self.slice_tokens = implementation, auxiliary, slice_tokens
        self.parameter_terms, self.activation_term = tuple(parameter_terms), activation_term

    def __call__(self, model: nn.Module, micro: Mapping[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
        """Loss (with a graph), sums by name (detached), the auxiliary loss, and what the weights cost, by name."""
        inputs = {k: v for k, v in inputs.items() if k != "labels"} | {"use_cache": False}
        activations = Activations(self.activation_term, micro["groups"])
        reference_RH = self._reference_pass(model, micro, inputs, activations)
        if self.auxiliary:
            inputs["output_router_logits"] = True
        with activations.of_tuned(body_of(model)):
            outputs = body_of(model)(**inputs)
        hidden = outputs.last_hidden_state
        hidden_TH = hidden.reshape(-1, hidden.shape[-1])
        head = head_of(model)
        reference_head = None if self.reference is None else self.reference.head(model)
        with gathered_head(head.weight_VH, head.bias_V):
            groups = row_groups(self.terms, micro, reference_RH)
            objective = self._objective(hidden_TH.to(head.weight_VH.device), head, groups, reference_head)
        auxiliary = auxiliary_loss(model, outputs, inputs.get("attention_mask")) if self.auxiliary else None
        loss, sums = objective.loss, dict(objective.sums)
        difference = activations.value()
        if self.activation_term is not None and difference is not None:
            loss = loss + (self.activation_term.weight * micro["per_aligned"] * difference).to(loss)
            sums[self.activation_term.name] = difference.detach()
        penalties = {term.name: term.value(model) for term in self.parameter_terms}
        return {"loss": loss, "sums": sums, "auxiliary": auxiliary, "penalties": penalties}

    def _reference_pass(
        self, model: nn.Module, micro: Mapping[str, Any], inputs: Mapping[str, Any], activations: Activations
    ) -> Tensor | None:
        """The hidden states of the reference pass, flattened (R × H), or ``None`` where nothing is drawn."""
        if self.reference is None or not (micro["has_reference"] or micro["join_reference"]):
            return None
        if micro["hidden"] is not None:
            cached: Tensor = micro["hidden"]
            return cached
        given = micro["reference"]
        if micro["join_reference"]:
            one = inputs["input_ids"][:1, :1]
            given = {"input_ids": one, "attention_mask": torch.ones_like(one)}
        long = [(prompt["ids"], prompt["index"]) for prompt in micro["long"]]
        with self.reference.serving(model) as base, activations.of_base(body_of(base)):
            flat_RH = prompts_hidden(base, inputs if given is None else given, long, self.slice_tokens)
        return None if micro["join_reference"] else flat_RH

    def _objective(
        self, hidden_TH: Tensor, head: LMHead, groups: Sequence[Rows], reference_head: LMHead | None
    ) -> Objective:
        if self.implementation == "plain":
            return plain(hidden_TH, head, groups, reference_head)
        return _untraced_sweep(hidden_TH, head, groups, reference_head, block_bytes=self.block_bytes)


def row_groups(terms: Sequence[TermOn], micro: Mapping[str, Any], reference_RH: Tensor | None) -> list[Rows]:
    """The groups of the micro-batch with the terms that act on each, weighted for the whole step."""
    places = (("response", "per_response"), ("aligned", "per_aligned"), ("held", "per_held"))
    on = {
        where: tuple(WeightedTerm(t.term, t.weight * micro[per]) for t in terms if t.where == where)
        for where, per in places
    }
    groups = micro["groups"]
    own = {name: _weighed(on["response"], group.get("weight")) for name, group in groups.items()}
    response = Rows(groups["response"]["index"], own["response"], groups["response"]["label"])
    if reference_RH is None:
        return [response]
    meets = {"aligned": on["aligned"], "both": own["both"] + on["aligned"] + on["held"]}
    if "held" in groups:
        meets["held"] = own["held"] + on["held"]
    return [
        response,
        *(_compared(groups[name], met, reference_RH) for name, met in meets.items() if met),
    ]


def _weighed(terms: tuple[WeightedTerm, ...], weight_N: Tensor | None) -> tuple[WeightedTerm, ...]:
    if weight_N is None:
        return terms
    wide_N = weight_N if weight_N.device.type == "mps" else weight_N.double()
    return tuple(WeightedTerm(weighted.term, weighted.weight * wide_N) for weighted in terms)


def _compared(group: Mapping[str, Tensor], met: tuple[WeightedTerm, ...], reference_RH: Tensor) -> Rows:
    needed = any(weighted.term.needs_reference for weighted in met)
    return Rows(group["index"], met, group.get("label"), reference_RH[group["reference"]] if needed else None)


def install(model: nn.Module, objective: StepObjective) -> None:
    """Give ``model.forward`` the keyword ``selfaug``; the signature that `generate` inspects stays the original one."""
    original: Callable[..., Any] = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: nn.Module, *args: Any, selfaug: Mapping[str, Any] | None = None, **kwargs: Any) -> Any:
        if selfaug is None:
            return original(*args, **kwargs)
        return objective(self, selfaug, kwargs)

    model.forward = types.MethodType(forward, model)
