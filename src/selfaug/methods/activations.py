"""`align-q` and its kin: hold the activations inside the layers to the base's instead of the output distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from selfaug.common.errors import ConfigError
from selfaug.methods.base import Changes, Method
from selfaug.methods.options import option
from selfaug.objective.activation_terms import ActivationTerm

if TYPE_CHECKING:
    from selfaug.training.config import SelfAugConfig

__all__ = ["ACTIVATION_METHODS", "AlignActivations"]

_Q, _K, _V, _O = ("q_proj",), ("k_proj",), ("v_proj",), ("o_proj", "out_proj")
_FFN = ("mlp", "feed_forward", "block_sparse_moe")


class AlignActivations(Method):
    """``loss = Σ nll / n_response + w · mean_m Σ_drawn mean_d (h_m - h_m,base)² / (f · n_aligned)``.

    ``f = align_fraction · align_token_fraction``.

    h_m are the outputs of the modules m at aligned positions: the projections of attention, or the feed-forward blocks.
    Source: arXiv 2509.03934, Table 2, which compares these with aligning the logits and gives neither the distance nor
    its weight: the mean squared difference of a position, averaged over modules, and the weight are ours (16 is what
    one small model needed: docs/results.md, *Logits, or activations inside*). "All layers" is taken to mean all four
    projections and the feed-forward block of every layer.
    """

    @dataclass(frozen=True)
    class Options:
        """Of the methods that align activations."""

        activation_weight: float = option(16.0, "Weight of the squared difference of activations.", least=0.0)

    formula: ClassVar[str] = "NLL + activation_weight·mean (h - h_base)² on aligned positions"
    source: ClassVar[str] = "2509.03934"
    needs: ClassVar[str] = "prompts apart from responses, modules of these names"
    strength: ClassVar[str] = "activation_weight"
    decides: ClassVar[frozenset[str]] = frozenset({"which activations are aligned"})

    def __init__(self, name: str, what: str, kinds: tuple[tuple[str, ...], ...]) -> None:
        self.name = name  # type: ignore[misc]
        self.summary = f"{what} held to the base's on the prompt"  # type: ignore[misc]
        self._kinds = kinds

    def check(self, config: SelfAugConfig) -> None:
        """Refuse checkpointing that computes a layer without a graph first."""
        given = config.gradient_checkpointing_kwargs or {}
        if config.gradient_checkpointing and given.get("use_reentrant"):
            raise ConfigError(
                f"method={self.name!r} compares activations inside the layers, which re-entrant checkpointing computes "
                "without a graph: nothing would be held.",
                "set use_reentrant: false in gradient_checkpointing_kwargs, or --gradient_checkpointing false.",
            )

    def changes(self, config: SelfAugConfig) -> Changes:
        """With a weight above 0 the difference."""
        weight = self.options(config).activation_weight
        return Changes(activation_term=ActivationTerm("activation", weight, self._kinds) if weight else None)


ACTIVATION_METHODS = (
    AlignActivations("align-q", "attention queries", (_Q,)),
    AlignActivations("align-k", "attention keys", (_K,)),
    AlignActivations("align-v", "attention values", (_V,)),
    AlignActivations("align-o", "attention outputs", (_O,)),
    AlignActivations("align-attention", "all four projections of attention", (_Q, _K, _V, _O)),
    AlignActivations("align-ffn", "outputs of feed-forward blocks", (_FFN,)),
    AlignActivations("align-layers", "all projections of attention and feed-forward blocks", (_Q, _K, _V, _O, _FFN)),
)
