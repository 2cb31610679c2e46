"""`psft`: stops learning a token in a step once it has become likelier by a given ratio."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from selfaug.methods.base import RESPONSE_LOSS, Changes, Method
from selfaug.methods.options import option
from selfaug.methods.requests import Proximal

if TYPE_CHECKING:
    from selfaug.training.config import SelfAugConfig

__all__ = ["PSFT"]


_LARGEST = 20.0


class PSFT(Method):
    """``-Σ min(r, 1 + clip_range) / n_response``, r = p[y] / p_old[y], p_old an earlier state of the model.

    It is computed as ``Σ sg(w) · nll / n_response`` with w = r where r ≤ 1 + `clip_range`, else 0: the gradient is the
    same, the logged value is not. (With an advantage of 1 the lower bound of PPO's clip never binds.) p_old is taken
    anew from the trained weights every `renew_steps` optimiser steps, without dropout; checkpoints contain it.

    Source: arXiv 2508.17784 and its code (zwhong714/PSFT, `verl/verl/trainer/ppo/core_algos.py:785-811`, settings
    `verl/recipe/psft/run_psft.sh`): 64 sequences for each p_old, 8 for each step, a clip of 0.28, and log r
    bounded by ±20. Difference: p_old is that of a step's number, not of a large batch that is split into steps.
    """

    @dataclass(frozen=True)
    class Options:
        """Options of `psft`."""

        clip_range: float = option(0.28, "A token likelier by more than this share is not trained.", above=0.0)
        renew_steps: int = option(8, "Optimiser steps with the same p_old; 1 is plain fine-tuning.", least=1)

    name: ClassVar[str] = "psft"
    summary: ClassVar[str] = "response tokens left alone once they have become likelier by a given ratio"
    formula: ClassVar[str] = "-min(r, 1 + clip_range), r = p[y] / p[y] of up to renew_steps steps ago"
    source: ClassVar[str] = "2508.17784"
    differs: ClassVar[str] = (
        "p_old is taken anew by number of steps, not of a large batch that is split into steps; the logged value "
        "is sg(r)·NLL"
    )
    needs: ClassVar[str] = "a plain LoRA adapter; one more forward pass"
    strength: ClassVar[str] = "clip_range"
    adapter: ClassVar[str] = "lora"
    decides: ClassVar[frozenset[str]] = frozenset({RESPONSE_LOSS})

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return the weights of response tokens, where p_old is not the current model at each step."""
        o = self.options(config)
        if o.renew_steps == 1:
            return Changes()
        return Changes(proximal=Proximal(partial(_weights, clip=o.clip_range), o.renew_steps))


def _weights(nll_N: Tensor, earlier_N: Tensor, clip: float) -> Tensor:
    ratio_N = (earlier_N.double() - nll_N.double()).clamp(-_LARGEST, _LARGEST).exp()
    return ratio_N * (ratio_N <= 1 + clip)
