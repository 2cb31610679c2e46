"""The base class of methods, and the record of what a method changes.

Trainer, seeds, data order and evaluation are the same for all methods. A method returns :class:`Changes`. Each field of
it says how the values of two methods are merged, so that `a+b` (``combined.py``) needs to know nothing of any method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from selfaug.methods.options import NoOptions
from selfaug.methods.requests import Compose, Mix, Proximal, Rate, Rewrite, Start, Texts
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
Constrain: TypeAlias = Callable[["nn.Module"], Callable[[], None]]
Fit: TypeAlias = Callable[[Sequence["Tensor"]], Weigh]

RESPONSE_LOSS = "the loss of response tokens"
MIXED_ROWS = "which rows are mixed in"
ADAPTER_START = "where the adapter starts"


def _only(values: Sequence[Any]) -> Any:
    """Return the value of the only part that has one; :attr:`Method.decides` rules out a second."""
    return next((value for value in values if value is not None), None)


def _concatenation(values: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(each for value in values for each in value)


def _product_of_weights(values: Sequence[Fit | None]) -> Fit | None:
    fits = [fit for fit in values if fit is not None]
    if len(fits) < 2:
        return fits[0] if fits else None

    def fit_all(samples: Sequence[Tensor]) -> Weigh:
        weighs = [fit(samples) for fit in fits]
        return lambda nll_N: math.prod((weigh(nll_N) for weigh in weighs), start=nll_N.new_ones(()))

    return fit_all


def _product_of_functions(values: Sequence[Weigh | None]) -> Weigh | None:
    weighs = [weigh for weigh in values if weigh is not None]
    if len(weighs) < 2:
        return weighs[0] if weighs else None
    return lambda nll_N: math.prod((weigh(nll_N) for weigh in weighs), start=nll_N.new_ones(()))


# How the values of a field of several methods are merged.
_ONE, _ALL, _FITS, _WEIGHTS, _PRODUCT = (
    {"merge": merge} for merge in (_only, _concatenation, _product_of_weights, _product_of_functions, math.prod)
)


@dataclass(frozen=True)
class Changes:
    """The changes that a method makes to plain supervised fine-tuning under given settings; by default none.

    Args:
        response_term: Row term of response tokens, also one that weights each token by the tuned model's current
            distribution; ``None`` for the NLL.
        added_terms: Further row terms.
        parameter_terms: Penalties on the trained weights.
        activation_term: Penalty on activations at aligned positions; ``None`` for none.
        mix: Rows to mix into the training rows; ``None`` for none.
        rewrite: Function that replaces training rows by ones that the base rewrites before the first step.
        compose: Rows that the base writes before the first step, to mix into the training rows.
        check_prompts: Functions of tokenizer and renderer that raise where the model's prompts do not fit the method.
        weigh: Function from the base's NLL (nats) of the response tokens of each training row (N each) to a function
            from one row's NLL (N) to their weights in the loss (N, 0 or more; a token of weight 0 is not trained). For
            weights from the base: one per token, fixed before the first step.
        reweigh: Function from the tuned model's NLL (nats) of the response tokens of a micro-batch (N) to their weights
            in the loss (N, 0 or more), in training alone. For weights from the current loss that depend on the whole
            micro-batch, such as on its median; it costs one more projection of these tokens. A weight that depends on
            its own token alone is cheaper in ``response_term``.
        proximal: Weights of response tokens by their likelihood under the weights of an earlier step, in training
            alone; it costs one more forward pass of the micro-batch.
        fisher: Texts for the estimate of the base's Fisher information of each adapted weight before the first step.
        start: Start of the adapter as a part of the pretrained weights; ``None`` for PEFT's own.
        adapter: Function from the settings of the given LoRA adapter to those of the one that is trained; ``None`` for
            the given one.
        learning_rate_factor: Factor on the learning rate.
        rate: Factor on the learning rate of each step by its NLL.
        constraints: Functions that are called with the model before the first step, and return what runs after every
            optimiser step.
        finish: Functions that change the trained model, inside distributed wrappers, after training.
    """

    response_term: RowTerm | None = field(default=None, metadata=_ONE)
    added_terms: tuple[TermOn, ...] = field(default=(), metadata=_ALL)
    parameter_terms: tuple[ParameterTerm, ...] = field(default=(), metadata=_ALL)
    activation_term: ActivationTerm | None = field(default=None, metadata=_ONE)
    mix: Mix | None = field(default=None, metadata=_ONE)
    rewrite: Rewrite | None = field(default=None, metadata=_ONE)
    compose: Compose | None = field(default=None, metadata=_ONE)
    check_prompts: tuple[Callable[[PreTrainedTokenizerBase, Renderer], object], ...] = field(default=(), metadata=_ALL)
    weigh: Fit | None = field(default=None, metadata=_FITS)
    reweigh: Weigh | None = field(default=None, metadata=_WEIGHTS)
    proximal: Proximal | None = field(default=None, metadata=_ONE)
    fisher: Texts | None = field(default=None, metadata=_ONE)
    start: Start | None = field(default=None, metadata=_ONE)
    adapter: Callable[[Any], Any] | None = field(default=None, metadata=_ONE)
    learning_rate_factor: float = field(default=1.0, metadata=_PRODUCT)
    rate: Rate | None = field(default=None, metadata=_ONE)
    constraints: tuple[Constrain, ...] = field(default=(), metadata=_ALL)
    finish: tuple[Callable[[nn.Module], None], ...] = field(default=(), metadata=_ALL)

    @property
    def terms(self) -> tuple[TermOn, ...]:
        """All row terms of the loss."""
        return (TermOn(self.response_term or NLL(), "response", 1.0), *self.added_terms)

    @property
    def places(self) -> frozenset[str]:
        """Groups of positions that have a term: ``response``, ``compared``, ``aligned``."""
        return frozenset({term.where for term in self.terms} | ({"aligned"} if self.activation_term else set()))

    @property
    def minimises_nll(self) -> bool:
        """Whether response tokens are learnt by the NLL of the answers given, each with weight 1."""
        return not (self.response_term or self.weigh or self.reweigh or self.rewrite)

    @property
    def generates(self) -> bool:
        """Whether the base writes anything before the first step."""
        return self.rewrite is not None or self.compose is not None


def merged(parts: Sequence[Changes]) -> Changes:
    """Merge the changes of several methods field by field."""
    return Changes(**{f.name: f.metadata["merge"]([getattr(part, f.name) for part in parts]) for f in fields(Changes)})


class Method:
    """``loss = Σ nll / n_response``: plain supervised fine-tuning, to be changed by subclasses.

    Attributes:
        name: Name on the command line and in results.
        summary: Line of the documentation's table.
        formula: Loss, in short, for the documentation.
        source: arXiv number of the publication, or a note; ``""`` for none.
        differs: What differs from the source; ``""`` for nothing, or where there is no source.
        needs: Requirements besides model and data; ``""`` for none.
        strength: Name of the option that controls how much is kept, for sweeps; ``""`` for none.
        defaults: Values of settings that are ``None`` in the configuration.
        Options: Data class of its options (``options.py``).
        adapter: ``lora`` if it acts on a LoRA adapter, ``osf`` if it replaces one by OSF's, ``none`` if it allows no
            adapter, else ``any``.
        reads_weights: Whether it computes with the pretrained weights of adapted layers, which must be whole on each
            rank, two-dimensional and not quantised.
        decides: Aspects that only one part of a combination may decide.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    formula: ClassVar[str] = "Σ nll / n_response"
    source: ClassVar[str] = ""
    differs: ClassVar[str] = ""
    needs: ClassVar[str] = ""
    strength: ClassVar[str] = ""
    defaults: ClassVar[dict[str, object]] = {"alpha": 0.0}
    Options: ClassVar[type] = NoOptions
    adapter: ClassVar[str] = "any"
    reads_weights: ClassVar[bool] = False
    decides: ClassVar[frozenset[str]] = frozenset()

    @property
    def parts(self) -> Sequence[Method]:
        """The methods that this one combines, here itself alone."""
        return (self,)

    def options(self, config: SelfAugConfig) -> Any:
        """Return this method's options, typed."""
        given = config.method_options
        assert given is None or isinstance(given, dict)
        names = [one.name for one in fields(self.Options)]
        return self.Options(**{name: (given or {})[name] for name in names})

    def check(self, config: SelfAugConfig) -> None:
        """Raise :class:`~selfaug.common.errors.ConfigError` if the settings do not work with this method."""

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return what this method changes under these settings."""
        return Changes()
