"""`prompt-nll`: learn the prompt's own tokens a little, beside the response's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from selfaug.common.errors import ConfigError
from selfaug.methods.base import Changes, Method
from selfaug.methods.options import option
from selfaug.objective.response_terms import PromptNLL as PromptNLLTerm
from selfaug.step.forward import TermOn

if TYPE_CHECKING:
    from selfaug.training.config import SelfAugConfig

__all__ = ["PromptNLL"]


class PromptNLL(Method):
    """``loss = Σ nll / n_response + w · Σ_drawn nll / (f · n_aligned)``, the second sum over prompt tokens.

    ``f = align_fraction · align_token_fraction``. The control that says whether the prompt must be *held to the base*
    or whether any loss on it will do.

    Source: prompt loss weight (arXiv 2401.13586) and weighted instruction tuning (arXiv 2507.07817), which weigh prompt
    tokens by w and response tokens by 1. We differ in: each side is a mean over its own tokens (2401.13586 divides both
    by Σ weights), so that a long prompt does not outweigh its response; prompt tokens are SelfAug's aligned positions.
    """

    @dataclass(frozen=True)
    class Options:
        """Options of `prompt-nll`."""

        prompt_weight: float = option(0.1, "Weight of the NLL of prompt tokens; 0 is plain fine-tuning.", least=0.0)

    name: ClassVar[str] = "prompt-nll"
    summary: ClassVar[str] = "the prompt's tokens learnt, too, with a small weight"
    formula: ClassVar[str] = "NLL + prompt_weight·NLL on aligned positions"
    source: ClassVar[str] = "2401.13586, 2507.07817"
    differs: ClassVar[str] = (
        "prompt and response are each divided by their own tokens; prompt tokens are the aligned positions"
    )
    needs: ClassVar[str] = "prompts apart from responses"
    strength: ClassVar[str] = "prompt_weight"

    def check(self, config: SelfAugConfig) -> None:
        """Refuse the boundary: the token behind it is the response's first, which is learnt already."""
        if config.align_boundary and self.options(config).prompt_weight:
            raise ConfigError(
                "align_boundary=True lets method='prompt-nll' learn the response's first token twice.",
                "leave align_boundary out.",
            )

    def changes(self, config: SelfAugConfig) -> Changes:
        """The NLL of prompt tokens, with a weight above 0."""
        weight = self.options(config).prompt_weight
        return Changes(added_terms=(TermOn(PromptNLLTerm(), "aligned", weight),) if weight else ())
