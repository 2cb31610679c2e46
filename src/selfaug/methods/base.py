"""A way of fine-tuning and the one record of what it changes; trainer, seeds, data order and evaluation stay the same.

A method returns :class:`Changes`. Each field of it says how the changes of two methods become those of both, so that
`a+b` (``combined.py``) needs to know nothing of any method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from selfaug.methods.options import NoOptions
from selfaug.methods.requests import Compose, Mix, Rewrite, Start, Texts
from selfaug.objective import NLL, RowTerm
from selfaug.objective.activation_terms import ActivationTerm
from selfaug.step.forward import TermOn
from selfaug.step.parameter_terms import ParameterTerm

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from selfaug.data.prompts import Renderer
    from selfaug.training.config import SelfAugConfig

__all__ = [
    "ADAPTER_START", "MIXED_ROWS", "RESPONSE_LOSS", "Changes", "Compose", "Method", "Rewrite", "Start", "Weigh",
    "merged",
]  # fmt: skip

Weigh: TypeAlias = Callable[["Tensor"], "Tensor"]
Fit: TypeAlias = Callable[[Sequence["Tensor"]], Weigh]

RESPONSE_LOSS = "the loss of response tokens"
MIXED_ROWS = "which rows are mixed in"
ADAPTER_START = "where the adapter starts"


def _of_one(found: Sequence[Any]) -> Any:
    """What the only part that has it says; that no two have it is said by :attr:`Method.decides`."""
    return next((one for one in found if one is not None), None)


def _of_all(found: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(each for one in found for each in one)


def _product_of_weights(found: Sequence[Fit | None]) -> Fit | None:
    fits = [fit for fit in found if fit is not None]
    if len(fits) < 2:
        return fits[0] if fits else None

    def fit_all(samples: Sequence[Tensor]) -> Weigh:
        weighs = [fit(samples) for fit in fits]
        return lambda nll_N: math.prod((weigh(nll_N) for weigh in weighs), start=nll_N.new_ones(()))

    return fit_all


# How a field of two methods' changes becomes that of both.
_ONE, _ALL, _WEIGHTS, _PRODUCT = ({"merge": merge} for merge in (_of_one, _of_all, _product_of_weights, math.prod))


@dataclass(frozen=True)
class Changes:
    """What a method changes of plain supervised fine-tuning, under given settings; by default nothing.

    Args:
        response_term: What each response token costs; ``None`` for its NLL.
        added_terms: Row terms beside the response's own.
        parameter_terms: What the trained weights themselves cost.
        activation_term: What activations inside the layers cost at aligned positions.
        mix: Rows that are put among the training rows.
        rewrite: Function that changes training rows with what the base writes, before the first step.
        compose: Rows that the base writes before the first step, to be put among the training rows.
        check_prompts: Functions of tokenizer and renderer that raise where the model's prompts cannot work.
        weigh: From the base's NLL (nats) of the response tokens of each training row that has any (N each) to a
            function from one row's (N) to their weights in the loss (N, 0 or more; a token of weight 0 is not learnt).
        fisher: Texts on which the base's Fisher information of each adapted weight is estimated before the first step.
        start: Where the adapter starts, if not at nothing.
        learning_rate_factor: What the learning rate is multiplied by.
        finish: Functions that change the model, inside all wrappers, when its training is over.
    """

    response_term: RowTerm | None = field(default=None, metadata=_ONE)
    added_terms: tuple[TermOn, ...] = field(default=(), metadata=_ALL)
    parameter_terms: tuple[ParameterTerm, ...] = field(default=(), metadata=_ALL)
    activation_term: ActivationTerm | None = field(default=None, metadata=_ONE)
    mix: Mix | None = field(default=None, metadata=_ONE)
    rewrite: Rewrite | None = field(default=None, metadata=_ONE)
    compose: Compose | None = field(default=None, metadata=_ONE)
    check_prompts: tuple[Callable[[PreTrainedTokenizerBase, Renderer], object], ...] = field(default=(), metadata=_ALL)
    weigh: Fit | None = field(default=None, metadata=_WEIGHTS)
    fisher: Texts | None = field(default=None, metadata=_ONE)
    start: Start | None = field(default=None, metadata=_ONE)
    learning_rate_factor: float = field(default=1.0, metadata=_PRODUCT)
    finish: tuple[Callable[[nn.Module], None], ...] = field(default=(), metadata=_ALL)

    @property
    def terms(self) -> tuple[TermOn, ...]:
        """All row terms of the loss with their weights."""
        return (TermOn(self.response_term or NLL(), "response", 1.0), *self.added_terms)

    @property
    def places(self) -> frozenset[str]:
        """Positions that a term acts on: ``response``, ``compared``, ``aligned``."""
        return frozenset({term.where for term in self.terms} | ({"aligned"} if self.activation_term else set()))

    @property
    def generates(self) -> bool:
        """Whether the base writes anything before the first step."""
        return self.rewrite is not None or self.compose is not None


def merged(parts: Sequence[Changes]) -> Changes:
    """The changes of several methods together, field by field."""
    found = {one.name: [getattr(part, one.name) for part in parts] for one in fields(Changes)}
    return Changes(**{one.name: one.metadata["merge"](found[one.name]) for one in fields(Changes)})


class Method:
    """Plain supervised fine-tuning, to be changed by subclasses: ``loss = Σ nll / n_response``.

    Attributes:
        name: Name on the command line, and in results.
        summary: One line for the documentation's table.
        formula: What is added to, or takes the place of, the NLL.
        source: Where it was published.
        needs: What must be there besides model and data; ``""`` for nothing.
        strength: The option that says how much is kept, for those that sweep it; ``""`` where there is none.
        defaults: Settings that are the method's own; ``None`` in the configuration means these.
        Options: Data class of its options (``options.py``).
        adapter: ``lora`` where it acts on a LoRA adapter, ``none`` where there must be no adapter, else ``any``.
        decides: What only one part of a combination may decide.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    formula: ClassVar[str] = "Σ nll / n_response"
    source: ClassVar[str] = ""
    needs: ClassVar[str] = ""
    strength: ClassVar[str] = ""
    defaults: ClassVar[dict[str, object]] = {"alpha": 0.0}
    Options: ClassVar[type] = NoOptions
    adapter: ClassVar[str] = "any"
    decides: ClassVar[frozenset[str]] = frozenset()

    @property
    def parts(self) -> Sequence[Method]:
        """The methods that this one is made of: itself."""
        return (self,)

    def options(self, config: SelfAugConfig) -> Any:
        """This method's options, typed."""
        given = config.method_options
        assert given is None or isinstance(given, dict)
        names = [one.name for one in fields(self.Options)]
        return self.Options(**{name: (given or {})[name] for name in names})

    def check(self, config: SelfAugConfig) -> None:
        """Raise :class:`~selfaug.common.errors.ConfigError` where the settings cannot work with this method."""

    def changes(self, config: SelfAugConfig) -> Changes:
        """What this method changes under these settings."""
        return Changes()
