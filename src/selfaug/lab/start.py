"""The initial weights of the lab's models: heads that look back and copy, and layers that add nothing yet.

A small model with random weights takes tens of millions of tokens to learn to copy from its prompt (the *induction
head*: Olsson et al. 2022, arXiv 2209.11895); until then it memorises and guesses. From these weights it takes a few
hundred thousand. All weights are trained as usual, and the architecture is unchanged.

1. Output projections are 0 except for the heads below, so the residual stream begins as the token embeddings.
2. Layer 0: head ``j`` reads the token ``j + 1`` positions back. Scores come from the biases of queries and keys alone,
   ``q_f = c e^{-i ω_f (j + 1)}`` and ``k_f = c`` (as RoPE's complex pairs, over its fastest frequencies ``ω_f``), so
   that ``q · k = c² Σ_f cos(ω_f (d - j - 1))`` is largest at the distance ``d = j + 1``. All heads read the same
   subspace and write to different ones, so that layer 1 can compare tokens at different distances.
3. Layer 1, on RoPE's slow frequencies: two heads match the current token with the token *before* each earlier one. A
   third matches tokens before the current one with tokens before each earlier one ("work of Midan ?" finds the word
   after "work of Midan is"). Each head copies the token that it finds into the stream.
4. Layer 2: two heads move what the third head found at the end of a question to the start of the answer; ChatML always
   puts the same number of tokens between them.

Shapes: H hidden size, D size of a head; the rows of a head are slices of [H, H].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

__all__ = ["start"]

_BACK = 7.0  # c of item 2: the token at the right distance gets nearly all of the attention
_FASTEST = 6  # number of frequencies, enough to distinguish near positions
_SLOW = 0.03  # radians a token: below this frequency, a match works over a hundred tokens
_MATCH = 2.0
_WRITTEN = 0.1  # scale of each head's output in layer 0: together they must not dominate the token itself
_COPIED = 0.5  # scale in layer 1
_CARRIED = 0.3  # scale in layer 2
_QUESTION = ((1, 2), (2, 3), (4, 5))  # positions back from the current and the earlier token: a name, and its relation
_SUFFIX = 5  # tokens from the end of a question, over `<|im_end|>\n<|im_start|>assistant`, to `\n` before the answer


@torch.no_grad()
def start(model: Qwen2ForCausalLM) -> None:
    """Change newly initialised weights in place; uses torch's random generator."""
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()
    first, second, third = (model.model.layers[number].self_attn for number in range(3))
    width = model.config.hidden_size // model.config.num_attention_heads
    read_DH = _orthogonal(width, model.config.hidden_size)
    wrote: list[Tensor] = []
    for head in range(model.config.num_attention_heads):
        wrote.append(_orthogonal(width, model.config.hidden_size))
        _look_back(first, model.config, head, head + 1)
        _copy(first, head, read_DH, _WRITTEN * wrote[-1])
    neighbour = [(read_DH, wrote[0])]
    question = [(wrote[now - 1], wrote[there - 1]) for now, there in _QUESTION]
    for head, parts in enumerate((neighbour, neighbour, question)):
        _match(second, model.config, head, parts)
        copied_DH = _orthogonal(width, model.config.hidden_size)
        _copy(second, head, copied_DH, _COPIED * copied_DH)
    for head in range(2):  # the second one reaches the same token from the answer's second token
        _look_back(third, model.config, head, _SUFFIX + head)
        _copy(third, head, copied_DH, _CARRIED * copied_DH)


def _rows(attention: Qwen2Attention, head: int) -> slice:
    return slice(head * attention.head_dim, (head + 1) * attention.head_dim)


def _copy(attention: Qwen2Attention, head: int, read_DH: Tensor, written_DH: Tensor) -> None:
    """Set what a head reads of the tokens that it attends to, and where it writes it."""
    attention.v_proj.weight[_rows(attention, head)] = read_DH
    attention.o_proj.weight[:, _rows(attention, head)] = written_DH.T


def _look_back(attention: Qwen2Attention, config: Qwen2Config, head: int, places: int) -> None:
    """Set scores that depend on the distance alone and are largest ``places`` positions back."""
    rows, frequencies_D2 = _rows(attention, head), _frequencies(config)
    for projection, back in ((attention.q_proj, places), (attention.k_proj, 0)):
        projection.weight[rows] *= 0.1
        projection.bias[rows] = _towards(frequencies_D2, back)


def _match(attention: Qwen2Attention, config: Qwen2Config, head: int, parts: list[tuple[Tensor, Tensor]]) -> None:
    """Set scores by content: the sum of products of subspaces of the current and of the earlier token."""
    slow = torch.nonzero(_frequencies(config) < _SLOW).flatten()
    slow = torch.cat([slow, slow + attention.head_dim // 2])
    query_DH, key_DH = (0.02 * torch.randn(attention.head_dim, config.hidden_size) for _ in range(2))
    query_DH[slow], key_DH[slow] = 0.0, 0.0
    for now_DH, there_DH in parts:
        mixed = _MATCH * _orthogonal(len(slow), attention.head_dim)
        query_DH[slow] += mixed @ now_DH
        key_DH[slow] += mixed @ there_DH
    attention.q_proj.weight[_rows(attention, head)] = query_DH
    attention.k_proj.weight[_rows(attention, head)] = key_DH


def _orthogonal(rows: int, columns: int) -> Tensor:
    return nn.init.orthogonal_(torch.empty(rows, columns))


def _frequencies(config: Qwen2Config) -> Tensor:
    """Return RoPE's frequencies (D / 2) in radians a token, the fastest first."""
    half = config.hidden_size // config.num_attention_heads // 2
    return torch.as_tensor(config.rope_parameters["rope_theta"] ** (-torch.arange(half) / half))


def _towards(frequencies_D2: Tensor, back: float) -> Tensor:
    """Return a head's bias (D): RoPE's pairs (i, i + D / 2), rotated back by so many positions."""
    half = len(frequencies_D2)
    bias_D = torch.zeros(2 * half)
    angles = -back * frequencies_D2[:_FASTEST]
    bias_D[:_FASTEST], bias_D[half : half + _FASTEST] = _BACK * angles.cos(), _BACK * angles.sin()
    return bias_D
