"""What is ``a+b``? The parts' changes together, unless two of them decide the same thing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from selfaug.common.errors import ConfigError
from selfaug.methods.base import RESPONSE_LOSS, Compose, Method, Rewrite, Start, Weigh
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
    from selfaug.training.config import SelfAugConfig

__all__ = ["Combined"]


class Combined(Method):
    """Several methods at once: the one response loss that a part decides, and everything that the parts add.

    Args:
        name: As given, ``a+b``.
        parts: At least two.

    Raises:
        ConfigError: If a part is named twice, or two decide the same thing.
    """

    def __init__(self, name: str, parts: Sequence[Method]) -> None:
        self.name = name  # type: ignore[misc]
        self._parts = tuple(parts)
        self.defaults = {"alpha": max((part.defaults["alpha"] for part in parts), key=lambda a: float(str(a)))}  # type: ignore[misc]
        self.needs_scores = any(part.needs_scores for part in parts)  # type: ignore[misc]
        for one, other in combinations(self._parts, 2):
            if one.name == other.name:
                raise ConfigError(f"method={name!r} names {one.name!r} twice.", f"write {one.name!r} once.")
            for thing in sorted(one.decides & other.decides):
                raise ConfigError(
                    f"method={name!r}: both {one.name!r} and {other.name!r} decide {thing}, so one would undo the "
                    "other.",
                    f"keep one of {one.name!r} and {other.name!r}.",
                )
            if {one.adapter, other.adapter} == {"lora", "none"}:
                raise ConfigError(
                    f"method={name!r}: one of {one.name!r} and {other.name!r} acts on a LoRA adapter, and the other "
                    "trains without any.",
                    f"keep one of {one.name!r} and {other.name!r}.",
                )

    @property
    def parts(self) -> Sequence[Method]:
        """In the order given."""
        return self._parts

    def check(self, config: SelfAugConfig) -> None:
        """Each part's own."""
        for part in self._parts:
            part.check(config)

    def response_term(self, config: SelfAugConfig) -> RowTerm:
        """Of the part that decides it."""
        return next((p.response_term(config) for p in self._parts if RESPONSE_LOSS in p.decides), NLL())

    def parameter_terms(self, config: SelfAugConfig) -> tuple[ParameterTerm, ...]:
        """Of all parts."""
        return tuple(term for part in self._parts for term in part.parameter_terms(config))

    def activation_term(self, config: SelfAugConfig) -> ActivationTerm | None:
        """Of the one part that has one."""
        return next((term for part in self._parts if (term := part.activation_term(config)) is not None), None)

    def mix(self, config: SelfAugConfig) -> Mix | None:
        """Of the one part that has one."""
        return next((mix for part in self._parts if (mix := part.mix(config)) is not None), None)

    def rewrite(self, config: SelfAugConfig) -> Rewrite | None:
        """Of the one part that has one."""
        return next((found for part in self._parts if (found := part.rewrite(config)) is not None), None)

    def compose(self, config: SelfAugConfig) -> Compose | None:
        """Of the one part that has one."""
        return next((found for part in self._parts if (found := part.compose(config)) is not None), None)

    def check_prompts(self, config: SelfAugConfig, tokenizer: PreTrainedTokenizerBase, renderer: Renderer) -> None:
        """Each part's own."""
        for part in self._parts:
            part.check_prompts(config, tokenizer, renderer)

    def weigh(self, config: SelfAugConfig, samples: Sequence[Tensor]) -> Weigh | None:
        """The product of the parts' weights."""
        found = [weigh for part in self._parts if (weigh := part.weigh(config, samples)) is not None]
        return (lambda nll_N: math.prod((weigh(nll_N) for weigh in found), start=nll_N.new_ones(()))) if found else None

    def fisher(self, config: SelfAugConfig) -> Texts | None:
        """Of the one part that has one."""
        return next((found for part in self._parts if (found := part.fisher(config)) is not None), None)

    def start(self, config: SelfAugConfig) -> Start | None:
        """Of the one part that has one."""
        return next((found for part in self._parts if (found := part.start(config)) is not None), None)

    def learning_rate_factor(self, config: SelfAugConfig) -> float:
        """The product of the parts'."""
        return math.prod(part.learning_rate_factor(config) for part in self._parts)

    def finish(self, config: SelfAugConfig, model: nn.Module) -> None:
        """In the order of the parts."""
        for part in self._parts:
            part.finish(config, model)

    def added_terms(self, config: SelfAugConfig) -> tuple[TermOn, ...]:
        """Of all parts."""
        return tuple(term for part in self._parts for term in part.added_terms(config))
