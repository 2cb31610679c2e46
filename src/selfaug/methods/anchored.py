"""`anchored`: distils towards a mixture of the current model and one that was fine-tuned on the same data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from selfaug.common.errors import ConfigError
from selfaug.methods.base import RESPONSE_LOSS, Changes, Method
from selfaug.methods.kl_response import RESPONSE_KL
from selfaug.methods.options import option
from selfaug.objective.response_terms import Anchored as AnchoredTerm
from selfaug.objective.response_terms import PartNLL
from selfaug.step.forward import TermOn

if TYPE_CHECKING:
    from selfaug.training.config import SelfAugConfig

__all__ = ["Anchored"]


class Anchored(Method):
    """``loss = (1 - c) · Σ nll / n_response + c · Σ_drawn KL(a ‖ p) / (align_fraction · n_response)``.

    c is `anchor_share`.

    ``a ∝ sg(p)^(1 - anchor_pull) · p_sft^anchor_pull`` on response tokens: it moves with the model p, towards a frozen
    model p_sft that was fine-tuned on the same data, by a part of the way in logits. p_sft is the model that
    `--reference` names, such as a `selfaug merge` of an `sft` run. The mixture is formed anew from both at each step,
    so that nothing beside them has to be kept.

    Source: arXiv 2605.04468 and its authors' code (wangxinyufighting/anchored_learning3.0,
    `KDFlow/kdflow/loss/anchored_kl.py:25-47`, `kdflow/algorithms/anchored_learning.py:70-90`), with c = 1 and a pull of
    0.5. Differences: sequences may be drawn for the KL (`align_fraction`).
    """

    @dataclass(frozen=True)
    class Options:
        """Options of `anchored`."""

        anchor_share: float = option(1.0, "Share of the KL in the loss; 0 is plain fine-tuning.", least=0.0, most=1.0)
        anchor_pull: float = option(
            0.5, "Weight of the fine-tuned model in the mixture; 1 is plain distillation.", above=0.0, most=1.0
        )

    name: ClassVar[str] = "anchored"
    summary: ClassVar[str] = "distillation towards a mixture of the current and an already fine-tuned model"
    formula: ClassVar[str] = "(1 - c)·NLL + c·KL(a ‖ tuned) on response tokens, a ∝ sg(p)^(1-pull)·p_sft^pull"
    source: ClassVar[str] = "2605.04468"
    differs: ClassVar[str] = "sequences may be drawn"
    needs: ClassVar[str] = "`--reference`: a model fine-tuned on the same data"
    strength: ClassVar[str] = "anchor_pull"
    decides: ClassVar[frozenset[str]] = frozenset({RESPONSE_LOSS, RESPONSE_KL})

    def check(self, config: SelfAugConfig) -> None:
        """Refuse a reference that is not a fine-tuned model, and terms that would hold the model to that one."""
        if not self.options(config).anchor_share:
            return
        if config.reference in ("base", "initial"):
            raise ConfigError(
                f"method='anchored' distils towards a model that is fine-tuned already, and reference="
                f"{config.reference!r} is the model as it was.",
                "train one with --method sft, merge it (selfaug merge), and name it with --reference.",
            )
        others = [term for term in config.changes.terms if term.term.needs_reference and term.term.name != "anchored"]
        if others or config.changes.activation_term is not None:
            raise ConfigError(
                f"method={config.method!r} would compare the prompt with the fine-tuned model that 'anchored' takes as "
                "reference, not with the base.",
                "leave 'anchored' out, or the part that compares with the base (alpha=0).",
            )

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return both parts of the loss, with a share above 0."""
        o = self.options(config)
        if not o.anchor_share:
            return Changes()
        term = TermOn(AnchoredTerm(o.anchor_pull), "compared", o.anchor_share)
        return Changes(response_term=PartNLL(1 - o.anchor_share), added_terms=(term,))
