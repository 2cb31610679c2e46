"""Which weights does the lab's model start from? Some heads that look back, and layers that add nothing yet.

A small model from random weights takes tens of millions of tokens to find out that it can copy from its prompt (the
*induction head*: Olsson et al. 2022, arXiv 2209.11895); until then it learns by heart and guesses. Started as here it
does so within some hundred thousand. Everything below is trained on as usual, and the architecture is untouched.

1. Output projections are 0 but for the heads below: the stream begins as the tokens themselves.
2. Layer 0: head ``j`` reads the token ``j + 1`` places back. Scores come from the biases of queries and keys alone,
   ``q_f = c e^{-i ω_f (j + 1)}`` and ``k_f = c`` (as RoPE's complex pairs, over its fastest frequencies ``ω_f``), so
   that ``q · k = c² Σ_f cos(ω_f (d - j - 1))`` is largest at the distance ``d = j + 1``.
3. Layer 1: the first heads match the token read now against the one that stood *before* each earlier token (head 0 of
   layer 0 wrote it there), on RoPE's slow frequencies, and copy what they find into the stream.

Shapes: H hidden width, D of a head, heads' rows are slices of [H, H].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM

__all__ = ["start"]

_BACK = 7.0  # c of 2: the neighbour at the right distance gets nearly all of the weight
_FASTEST = 6  # frequencies that tell near places apart
_SLOW = 0.03  # radians a token: below it a match holds over a hundred tokens
_MATCH = 2.0
_MATCHING = 2  # heads of layer 1
_WRITTEN = 0.1  # by each head of layer 0: four of them must not drown the token itself
_COPIED = 0.5  # by those of layer 1


@torch.no_grad()
def start(model: Qwen2ForCausalLM) -> None:
    """Change freshly drawn weights in place; draws from torch's generator."""
    config = model.config
    width = config.hidden_size // config.num_attention_heads
    half = width // 2
    frequencies_D2 = config.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()
    first, second = (model.model.layers[number].self_attn for number in (0, 1))
    for head in range(config.num_attention_heads):
        rows = slice(head * width, (head + 1) * width)
        for projection in (first.q_proj, first.k_proj):
            projection.weight[rows] *= 0.1
        first.q_proj.bias[rows] = _towards(frequencies_D2, head + 1.0)
        first.k_proj.bias[rows] = _towards(frequencies_D2, 0.0)
        nn.init.orthogonal_(first.v_proj.weight[rows])
        first.o_proj.weight[:, rows] = _WRITTEN * _orthogonal(width, config.hidden_size).T
    slow = torch.nonzero(frequencies_D2 < _SLOW).flatten()
    slow = torch.cat([slow, slow + half])
    read, wrote = first.v_proj.weight[:width], first.o_proj.weight[:, :width].T / _WRITTEN
    for head in range(min(_MATCHING, config.num_attention_heads)):
        rows = slice(head * width, (head + 1) * width)
        mixed = _orthogonal(len(slow), width)
        for projection, seen in ((second.q_proj, read), (second.k_proj, wrote)):
            weight_DH = 0.02 * torch.randn(width, config.hidden_size)
            weight_DH[slow] = _MATCH * mixed @ seen
            projection.weight[rows] = weight_DH
        copied = _orthogonal(width, config.hidden_size)
        second.v_proj.weight[rows] = copied
        second.o_proj.weight[:, rows] = _COPIED * copied.T


def _orthogonal(rows: int, columns: int) -> Tensor:
    return nn.init.orthogonal_(torch.empty(rows, columns))


def _towards(frequencies_D2: Tensor, back: float) -> Tensor:
    """A head's bias: pairs (i, i + D / 2), as RoPE turns them, turned back by so many places."""
    half = len(frequencies_D2)
    bias_D = torch.zeros(2 * half)
    angles = -back * frequencies_D2[:_FASTEST]
    bias_D[:_FASTEST], bias_D[half : half + _FASTEST] = _BACK * angles.cos(), _BACK * angles.sin()
    return bias_D
