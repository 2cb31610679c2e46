"""What may a way of fine-tuning change?

A method overrides only what it changes; trainer, seeds, data order and evaluation are the same for all. What several of
them change apart from each other can be combined (``combined.py``), so each hook says one thing only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from selfaug.common.errors import ConfigError
from selfaug.methods.options import NoOptions
from selfaug.objective import NLL, RowTerm
from selfaug.objective.activation_terms import ActivationTerm
from selfaug.objective.parameter_terms import ParameterTerm
from selfaug.step.forward import TermOn

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from selfaug.before.mixing import Mix
    from selfaug.before.texts import Texts
    from selfaug.data.prompts import Renderer
    from selfaug.data.record import Conversation, Item
    from selfaug.generation.scribe import Scribe
    from selfaug.training.config import SelfAugConfig

__all__ = ["ADAPTER_START", "MIXED_ROWS", "RESPONSE_LOSS", "Compose", "Method", "Rewrite", "Start", "Weigh"]

Weigh: TypeAlias = Callable[["Tensor"], "Tensor"]
Rewrite: TypeAlias = Callable[[Sequence["Item"], "Scribe"], list["Item"]]

RESPONSE_LOSS = "the loss of response tokens"
MIXED_ROWS = "which rows are mixed in"
ADAPTER_START = "where the adapter starts"


@dataclass(frozen=True)
class Start:
    """Where the adapter starts: a part of the pretrained weights, taken out of them.

    Args:
        kind: ``corda`` or ``pissa``, as PEFT's ``init_lora_weights`` calls them.
        texts: What it looks at, if anything.
    """

    kind: str
    texts: Texts | None = None


@dataclass(frozen=True)
class Compose:
    """Conversations that the base writes itself: ``ratio`` for each training row, and what writes so many."""

    ratio: float
    write: Callable[[Scribe, int], list[Conversation]]


class Method:
    """Plain supervised fine-tuning, to be changed by subclasses: ``loss = Σ nll / n_response``.

    Attributes:
        name: On the command line, and in results.
        summary: One line for the documentation's table.
        formula: What is added to, or takes the place of, the NLL.
        source: Where it was published.
        needs: What must be there besides model and data; ``""`` for nothing.
        strength: The option that says how much is kept, for those that sweep it; ``""`` where there is none.
        defaults: Of settings that are the method's own; ``None`` in the configuration means these.
        Options: A data class of its options (``options.py``).
        adapter: ``lora`` where it acts on a LoRA adapter, ``none`` where there must be no adapter, else ``any``.
        needs_scores: Whether it weighs response tokens by the base's scores of them.
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
    needs_scores: ClassVar[bool] = False
    decides: ClassVar[frozenset[str]] = frozenset()

    @property
    def parts(self) -> Sequence[Method]:
        """The methods that this one is made of: itself."""
        return (self,)

    def options(self, config: SelfAugConfig) -> Any:
        """This method's options, typed."""
        given = config.method_options
        assert given is None or isinstance(given, dict)
        names = [field.name for field in dataclasses.fields(self.Options)]
        return self.Options(**{name: (given or {})[name] for name in names})

    def check(self, config: SelfAugConfig) -> None:
        """Raise :class:`selfaug.common.errors.ConfigError` where the settings cannot work with this method."""

    def check_alpha(self, config: SelfAugConfig) -> None:
        """Raise :class:`selfaug.common.errors.ConfigError` where an α is set and no part of the method aligns prompts."""
        if config.alpha and not self.defaults["alpha"]:
            raise ConfigError(
                f"alpha={config.alpha} has no effect with method={self.name!r}, which aligns no prompt.",
                f"use --method selfaug (or a combination, --method selfaug+{self.name}), or leave alpha out.",
            )

    def response_term(self, config: SelfAugConfig) -> RowTerm:
        """What each response token costs."""
        return NLL()

    def added_terms(self, config: SelfAugConfig) -> tuple[TermOn, ...]:
        """Row terms beside the response's own."""
        return ()

    def parameter_terms(self, config: SelfAugConfig) -> tuple[ParameterTerm, ...]:
        """What the trained weights themselves cost."""
        return ()

    def activation_term(self, config: SelfAugConfig) -> ActivationTerm | None:
        """What activations inside the layers cost at aligned positions."""
        return None

    def mix(self, config: SelfAugConfig) -> Mix | None:
        """Rows that are put among the training rows."""
        return None

    def rewrite(self, config: SelfAugConfig) -> Rewrite | None:
        """Change training rows with what the base writes, before the first step."""
        return None

    def compose(self, config: SelfAugConfig) -> Compose | None:
        """Rows that the base writes before the first step, to be put among the training rows."""
        return None

    def generates(self, config: SelfAugConfig) -> bool:
        """Whether the base writes anything before the first step."""
        return self.rewrite(config) is not None or self.compose(config) is not None

    def check_prompts(self, config: SelfAugConfig, tokenizer: PreTrainedTokenizerBase, renderer: Renderer) -> None:
        """Raise :class:`selfaug.common.errors.ConfigError` where the model's prompts cannot work with this method."""
        if renderer.mode != "chat" and self.generates(config):
            raise ConfigError(
                f"method={self.name!r} lets the model write, as an assistant does, and {tokenizer.name_or_path!r} has "
                "no chat template (or plain prompts are asked for), so it is no instruct model.",
                "use an instruct model, name its template with --chat_template_path, or choose another method.",
            )

    def weigh(self, config: SelfAugConfig, samples: Sequence[Tensor]) -> Weigh | None:
        """Weights of response tokens in the loss, from the base's NLL of them; asked where ``needs_scores``.

        Args:
            config: Of the run.
            samples: The base's NLL of the response tokens of each training row that has any (N each, nats).

        Returns:
            A function from one row's (N) to its weights (N, 0 or more); a token of weight 0 is not learnt at all.
        """
        return None

    def fisher(self, config: SelfAugConfig) -> Texts | None:
        """What the base's Fisher information of each adapted weight is to be estimated on before the first step."""
        return None

    def start(self, config: SelfAugConfig) -> Start | None:
        """Where the adapter starts, if not at nothing."""
        return None

    def learning_rate_factor(self, config: SelfAugConfig) -> float:
        """What the learning rate is multiplied by."""
        return 1.0

    def finish(self, config: SelfAugConfig, model: nn.Module) -> None:
        """Change the model, inside all wrappers, when its training is over."""

    def terms(self, config: SelfAugConfig) -> tuple[TermOn, ...]:
        """All row terms of the loss with their weights."""
        return (TermOn(self.response_term(config), "response", 1.0), *self.added_terms(config))
