"""`align-activations`: hold activations inside the layers to the base's instead of the output distribution."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from selfaug.common.errors import ConfigError
from selfaug.methods.base import Changes, Method
from selfaug.methods.options import option
from selfaug.objective.activation_terms import ActivationTerm

if TYPE_CHECKING:
    from selfaug.training.config import SelfAugConfig

__all__ = ["ALIGNED_MODULES", "AlignActivations"]

_Q, _K, _V, _O = ("q_proj",), ("k_proj",), ("v_proj",), ("o_proj", "out_proj")
_FFN = ("mlp", "feed_forward", "block_sparse_moe")
ALIGNED_MODULES: dict[str, tuple[tuple[str, ...], ...]] = {
    "q": (_Q,),
    "k": (_K,),
    "v": (_V,),
    "o": (_O,),
    "attention": (_Q, _K, _V, _O),
    "ffn": (_FFN,),
    "layers": (_Q, _K, _V, _O, _FFN),
}
"""Names that the modules of each choice have in the architectures that we know."""


class AlignActivations(Method):
    """``loss = Σ nll / n_response + w · mean_m Σ_drawn mean_d (h_m - h_m,base)² / (f · n_aligned)``.

    ``f = align_fraction · align_token_fraction``; h_m are the outputs of the modules m at aligned positions.

    Source: arXiv 2509.03934, Table 2, which compares these with aligning the logits and gives neither the distance nor
    its weight. The mean squared difference of a position, averaged over modules, and the weight are ours: 16 is what
    one small model needed (docs/results/activations.md). "All layers" is taken to mean all four
    projections and the feed-forward block of every layer.

    Args:
        name: Name on the command line; ``align-q`` and the like are older names of one choice of modules.
        modules: Default of ``align_modules``.
    """

    @dataclass(frozen=True)
    class Options:
        """Options of the method."""

        activation_weight: float = option(16.0, "Weight of the squared difference of activations.", least=0.0)
        align_modules: str = option(
            "ffn",
            "Modules whose outputs are aligned: a projection of attention (q, k, v, o), all four (attention), "
            "feed-forward blocks (ffn), or all of these (layers).",
            choices=tuple(ALIGNED_MODULES),
        )

    formula: ClassVar[str] = "NLL + activation_weight·mean (h - h_base)² on aligned positions"
    summary: ClassVar[str] = "activations of `align_modules` held to the base's on the prompt"
    source: ClassVar[str] = "2509.03934"
    differs: ClassVar[str] = "distance and weight are only ours: the source gives neither"
    needs: ClassVar[str] = "prompts apart from responses, modules of these names"
    strength: ClassVar[str] = "activation_weight"
    decides: ClassVar[frozenset[str]] = frozenset({"which activations are aligned"})

    def __init__(self, name: str = "align-activations", modules: str = "ffn") -> None:
        self.name = name  # type: ignore[misc]
        metadata = next(one.metadata for one in dataclasses.fields(self.Options) if one.name == "align_modules")
        default = dataclasses.field(default=modules, metadata=metadata)
        self.Options = dataclasses.make_dataclass(  # type: ignore[misc, assignment]
            "Options", [("align_modules", str, default)], bases=(self.Options,), frozen=True
        )

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
        """The difference of activations, with a weight above 0."""
        options = self.options(config)
        if not options.activation_weight:
            return Changes()
        kinds = ALIGNED_MODULES[options.align_modules]
        return Changes(activation_term=ActivationTerm("activation", options.activation_weight, kinds))
