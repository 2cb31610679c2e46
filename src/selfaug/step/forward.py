"""Both passes and the objective inside one call of the wrapped model.

Distributed wrappers gather weights and register gradient hooks around a call of the model. Therefore the model's own
`forward` takes one more keyword, `selfaug`. With it, the call runs the reference pass, the training pass and the
objective, and returns the loss and its parts; without it, the original forward runs.

Shapes: T tokens of the training pass, R hidden states of the reference pass, N rows of a group, H hidden.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from selfaug.model.libraries import gathered_head
from selfaug.model.parts import auxiliary_loss, body_of, head_of
from selfaug.objective import NLL, LMHead, Objective, Rows, RowTerm, WeightedTerm, plain, sweep
from selfaug.objective.activation_terms import Activations, ActivationTerm
from selfaug.objective.values import row_values
from selfaug.reference import Reference
from selfaug.reference.passes import idle_passes, prompts_hidden
from selfaug.step.micro_batch import MicroBatch, Positions
from selfaug.step.parameter_terms import ParameterTerm

__all__ = ["StepObjective", "TermOn", "inside", "install"]

T = TypeVar("T")

# Not traced by `torch.compile` of the model: its block sizes change with every batch, and it has its own kernels.
_untraced_sweep: Callable[..., Objective] = torch.compiler.disable(sweep)


@dataclass(frozen=True)
class TermOn:
    """A row term of a method and the positions on which it acts.

    Args:
        term: Row term.
        where: Group of positions: ``response`` (all), ``compared`` (those of drawn sequences) or ``aligned``.
        weight: Weight in the loss.
    """

    term: RowTerm
    where: str
    weight: float


class StepObjective:
    """The computation of one micro-batch: reference pass, training pass and objective.

    Args:
        terms: Row terms of the method.
        reference: Source of the base's hidden states; ``None`` where no term needs one.
        block_bytes: Memory bound of the sweep in bytes; ``None`` for the device's default.
        implementation: ``sweep``, or ``plain`` for the dense definition.
        auxiliary: Whether a mixture of experts' load-balancing loss is computed.
        parameter_terms: Parameter terms of the method.
        activation_term: Activation term of the method; ``None`` for none.
        slice_tokens: Number of tokens of a slice of long prompts; ``None`` for no slices.
        reweigh: Function from the NLL of a micro-batch's response tokens to their weights in training; ``None`` for
            equal weights.
        proximal: Function from that NLL and the NLL under earlier weights to their weights in training; ``None`` for
            equal weights.
        earlier: Copy of the trained weights at an earlier step; ``None`` without ``proximal``.
        inspect: Function that is called with the model and its inputs, labels included, before both passes; ``None``
            for none.
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
        reweigh: Callable[[Tensor], Tensor] | None = None,
        proximal: Callable[[Tensor, Tensor], Tensor] | None = None,
        earlier: Reference | None = None,
        inspect: Callable[[nn.Module, Mapping[str, Any]], None] | None = None,
    ) -> None:
        self.reweigh, self.inspect = reweigh, inspect
        self.proximal, self.earlier = proximal, earlier
        self.terms, self.reference, self.block_bytes = tuple(terms), reference, block_bytes
        self.implementation, self.auxiliary, self.slice_tokens = implementation, auxiliary, slice_tokens
        self.parameter_terms, self.activation_term = tuple(parameter_terms), activation_term

    def reweight(self, name: str, weight: float) -> None:
        """Give the row term of this name another weight from the next call on."""
        self.terms = tuple(replace(t, weight=weight) if t.term.name == name else t for t in self.terms)

    def __call__(self, model: nn.Module, micro: MicroBatch, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return ``loss`` (with a graph), detached ``sums`` by name, ``auxiliary`` loss, and ``penalties`` by name."""
        if self.inspect is not None:
            self.inspect(model, inputs)
        inputs = {k: v for k, v in inputs.items() if k != "labels"} | {"use_cache": False}
        activations = Activations(self.activation_term, *micro.aligned_places())
        reference_RH = self._reference_pass(model, micro, inputs, activations)
        earlier_N = self._earlier_nll(model, micro, inputs)
        if self.auxiliary:
            inputs["output_router_logits"] = True
        with activations.of_tuned(body_of(model)):
            outputs = body_of(model)(**inputs)
        hidden = outputs.last_hidden_state
        hidden_TH = hidden.reshape(-1, hidden.shape[-1])
        head = head_of(model)
        reference_head = None if self.reference is None else self.reference.head(model)
        others = () if reference_head is None else (reference_head.weight_VH, reference_head.bias_V)
        with gathered_head(head.weight_VH, head.bias_V, *others):
            hidden_TH = hidden_TH.to(head.weight_VH.device)
            if self.reweigh is not None and model.training:
                micro = _reweighed(micro, hidden_TH, head, self.reweigh)
            if self.proximal is not None and earlier_N is not None:
                micro = _reweighed(micro, hidden_TH, head, partial(_against, earlier_N, self.proximal))
            groups = row_groups(self.terms, micro, reference_RH)
            objective = self._objective(hidden_TH, head, groups, reference_head)
        auxiliary = auxiliary_loss(model, outputs, inputs.get("attention_mask")) if self.auxiliary else None
        loss, sums = objective.loss, dict(objective.sums)
        difference = activations.value()
        if self.activation_term is not None and difference is not None:
            loss = loss + (self.activation_term.weight * micro.per_aligned * difference).to(loss)
            sums[self.activation_term.name] = difference.detach()
        penalties = {term.name: term.value(model) for term in self.parameter_terms}
        return {"loss": loss, "sums": sums, "auxiliary": auxiliary, "penalties": penalties}

    def _reference_pass(
        self, model: nn.Module, micro: MicroBatch, inputs: Mapping[str, Any], activations: Activations
    ) -> Tensor | None:
        """Return the flattened hidden states of the reference pass, or ``None`` where nothing is drawn."""
        if self.reference is None or not (micro.has_reference or micro.idle_passes):
            return None
        if micro.hidden is not None:
            return micro.hidden
        given = inputs if micro.reference is None else micro.reference  # None for the inputs of the micro-batch
        long = [(prompt.input_ids_T, prompt.index_N) for prompt in micro.long]
        flat_RH = None
        with self.reference.serving(model) as base:
            if micro.has_reference:
                with activations.of_base(body_of(base)):
                    flat_RH = prompts_hidden(base, given, long, self.slice_tokens)
            idle_passes(base, inputs["input_ids"], micro.idle_passes)
        return flat_RH

    def _earlier_nll(self, model: nn.Module, micro: MicroBatch, inputs: Mapping[str, Any]) -> Tensor | None:
        """Return the NLL of the response tokens under the earlier weights, in the order of :func:`_response_places`."""
        places = _response_places(micro)
        if self.earlier is None or not model.training or places is None:
            return None
        with self.earlier.serving(model) as served:
            hidden = body_of(served)(**inputs).last_hidden_state
            rows_NH = hidden.reshape(-1, hidden.shape[-1])[places[0]]
            return row_values(rows_NH, head_of(served), [NLL()], label_N=places[1])[NLL().name]

    def _objective(
        self, hidden_TH: Tensor, head: LMHead, groups: Sequence[Rows], reference_head: LMHead | None
    ) -> Objective:
        if self.implementation == "plain":
            return plain(hidden_TH, head, groups, reference_head)
        return _untraced_sweep(hidden_TH, head, groups, reference_head, block_bytes=self.block_bytes)


def _reweighed(micro: MicroBatch, hidden_TH: Tensor, head: LMHead, reweigh: Callable[[Tensor], Tensor]) -> MicroBatch:
    """Return the micro-batch with the weights of its response tokens multiplied by a function of their NLL."""
    places, present = _response_places(micro), _response_groups(micro)
    if places is None:
        return micro
    index_N, label_N = places
    nll_N = row_values(hidden_TH.detach()[index_N], head, [NLL()], label_N=label_N)[NLL().name]
    weights = reweigh(nll_N).split([len(group) for group in present.values()])
    changed: dict[str, Any] = {
        name: replace(group, weight_N=weight_N if group.weight_N is None else weight_N * group.weight_N)
        for (name, group), weight_N in zip(present.items(), weights, strict=True)
    }
    return replace(micro, **changed)


def _response_groups(micro: MicroBatch) -> dict[str, Positions]:
    groups = {name: getattr(micro, name) for name in ("response", "both", "compared")}
    return {name: group for name, group in groups.items() if group is not None and len(group)}


def _response_places(micro: MicroBatch) -> tuple[Tensor, Tensor] | None:
    """Return indices and labels of all response tokens, group by group; ``None`` without any."""
    groups = list(_response_groups(micro).values())
    labels = [group.label_N for group in groups if group.label_N is not None]
    return (torch.cat([group.index_N for group in groups]), torch.cat(labels)) if groups else None


def _against(earlier_N: Tensor, weigh: Callable[[Tensor, Tensor], Tensor], nll_N: Tensor) -> Tensor:
    return weigh(nll_N, earlier_N)


def row_groups(terms: Sequence[TermOn], micro: MicroBatch, reference_RH: Tensor | None) -> list[Rows]:
    """Return the groups of rows of the micro-batch, with terms weighted for the whole step."""

    def on(where: str, per: float) -> tuple[WeightedTerm, ...]:
        return tuple(WeightedTerm(t.term, t.weight * per) for t in terms if t.where == where)

    learnt, aligned, compared = (
        on("response", micro.per_response), on("aligned", micro.per_aligned), on("compared", micro.per_compared)
    )  # fmt: skip
    groups = [Rows(micro.response.index_N, _weighed(learnt, micro.response.weight_N), micro.response.label_N)]
    others = [(micro.aligned, aligned), (micro.both, _weighed(learnt, micro.both.weight_N) + aligned + compared)]
    if micro.compared is not None:
        others.append((micro.compared, _weighed(learnt, micro.compared.weight_N) + compared))
    if reference_RH is None:  # nothing is drawn, or no term needs the reference
        others = [(group, weighted) for group, weighted in others if len(group)]
    return groups + [_rows(group, weighted, reference_RH) for group, weighted in others if weighted]


def _weighed(terms: tuple[WeightedTerm, ...], weight_N: Tensor | None) -> tuple[WeightedTerm, ...]:
    if weight_N is None:
        return terms
    wide_N = weight_N if weight_N.device.type == "mps" else weight_N.double()
    return tuple(WeightedTerm(weighted.term, weighted.weight * wide_N) for weighted in terms)


def _rows(group: Positions, terms: tuple[WeightedTerm, ...], reference_RH: Tensor | None) -> Rows:
    needed = any(weighted.term.needs_reference for weighted in terms)
    reference_NH = reference_RH[group.reference_N] if needed and reference_RH is not None else None
    return Rows(group.index_N, terms, group.label_N, reference_NH)


def install(model: nn.Module, objective: StepObjective) -> None:
    """Add the keyword ``selfaug`` to ``model.forward``; the signature that `generate` inspects does not change.

    Its value is a micro-batch, or a function of the model: see :func:`inside`.
    """
    original: Callable[..., Any] = model.forward

    @functools.wraps(type(model).forward)
    def forward(
        self: nn.Module, *args: Any, selfaug: MicroBatch | Callable[[nn.Module], Any] | None = None, **kwargs: Any
    ) -> Any:
        if selfaug is None:
            return original(*args, **kwargs)
        return objective(self, selfaug, kwargs) if isinstance(selfaug, MicroBatch) else selfaug(self)

    model.forward = types.MethodType(forward, model)


def inside(wrapped: nn.Module, function: Callable[[nn.Module], T]) -> T:
    """Return ``function(model)``, run without gradient inside a call of the wrapped model.

    A sharded model computes only there, since its wrapper gathers weights around a call. Every rank must call this,
    with a function that runs the model as often.

    Args:
        wrapped: Model in its distributed wrapper, in which an objective is installed.
        function: Function of the causal LM inside all wrappers.
    """
    found: list[T] = []

    def kept(model: nn.Module) -> None:
        found.append(function(model))  # wrappers change and cast what a call returns

    with torch.no_grad():
        wrapped(selfaug=kept)
    return found[0]
