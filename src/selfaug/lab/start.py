"""Which weights does the lab's model start from? Some heads that look back, and layers that add nothing yet.

A small model from random weights takes tens of millions of tokens to find out that it can copy from its prompt (the
*induction head*: Olsson et al. 2022, arXiv 2209.11895); until then it learns by heart and guesses. Started as here it
does so within some hundred thousand. Everything below is trained on as usual, and the architecture is untouched.

1. Output projections are 0 but for the heads below: the stream begins as the tokens themselves.
2. Layer 0: head ``j`` reads the token ``j + 1`` places back. Scores come from the biases of queries and keys alone,
   ``q_f = c e^{-i ω_f (j + 1)}`` and ``k_f = c`` (as RoPE's complex pairs, over its fastest frequencies ``ω_f``), so
   that ``q · k = c² Σ_f cos(ω_f (d - j - 1))`` is largest at the distance ``d = j + 1``. All heads read tokens alike
   and write them apart, so that layer 1 can compare what stood at different distances.
3. Layer 1, on RoPE's slow frequencies: two heads match the token read now against the one that stood *before* each
   earlier token; a third matches the last tokens but one of now against those but two of there ("work of Midan ?" finds
   the word after "work of Midan is"). Each copies what it finds into the stream.
4. Layer 2: two heads carry what the third found at a question's end to where the answer begins: the places that ChatML
   puts between are always as many.

Shapes: H hidden width, D of a head, heads' rows are slices of [H, H].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

__all__ = ["start"]

_BACK = 7.0  # c of 2: the neighbour at the right distance gets nearly all of the weight
_FASTEST = 6  # frequencies that tell near places apart
_SLOW = 0.03  # radians a token: below it a match holds over a hundred tokens
_MATCH = 2.0
_WRITTEN = 0.1  # by each head of layer 0: all of them together must not drown the token itself
_COPIED = 0.5  # by those of layer 1
_CARRIED = 0.3  # by those of layer 2
_ASKED = ((1, 2), (2, 3), (4, 5))  # places back of now, and of there: both syllables of a name, and what is asked of it
_SUFFIX = 5  # from the last sign of a question, over `<|im_end|>\n<|im_start|>assistant`, to the `\n` before the answer


@torch.no_grad()
def start(model: Qwen2ForCausalLM) -> None:
    """Change freshly drawn weights in place; draws from torch's generator."""
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
    asked = [(wrote[now - 1], wrote[there - 1]) for now, there in _ASKED]
    for head, parts in enumerate((neighbour, neighbour, asked)):
        _match(second, model.config, head, parts)
        copied_DH = _orthogonal(width, model.config.hidden_size)
        _copy(second, head, copied_DH, _COPIED * copied_DH)
    for head in range(2):  # the second reaches the same place from the answer's second token
        _look_back(third, model.config, head, _SUFFIX + head)
        _copy(third, head, copied_DH, _CARRIED * copied_DH)


def _rows(attention: Qwen2Attention, head: int) -> slice:
    return slice(head * attention.head_dim, (head + 1) * attention.head_dim)


def _copy(attention: Qwen2Attention, head: int, read_DH: Tensor, written_DH: Tensor) -> None:
    """What a head takes from the place that it looks at, and what it adds to the stream of it."""
    attention.v_proj.weight[_rows(attention, head)] = read_DH
    attention.o_proj.weight[:, _rows(attention, head)] = written_DH.T


def _look_back(attention: Qwen2Attention, config: Qwen2Config, head: int, places: int) -> None:
    """Scores by distance alone, largest so many places back."""
    rows, frequencies_D2 = _rows(attention, head), _frequencies(config)
    for projection, back in ((attention.q_proj, places), (attention.k_proj, 0)):
        projection.weight[rows] *= 0.1
        projection.bias[rows] = _towards(frequencies_D2, back)


def _match(attention: Qwen2Attention, config: Qwen2Config, head: int, parts: list[tuple[Tensor, Tensor]]) -> None:
    """Scores by content: the sum over pairs of what is seen of now, and of there, of their products."""
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
    """RoPE's, in radians a token, fastest first: [D / 2]."""
    half = config.hidden_size // config.num_attention_heads // 2
    return torch.as_tensor(config.rope_parameters["rope_theta"] ** (-torch.arange(half) / half))


def _towards(frequencies_D2: Tensor, back: float) -> Tensor:
    """A head's bias: pairs (i, i + D / 2), as RoPE turns them, turned back by so many places."""
    half = len(frequencies_D2)
    bias_D = torch.zeros(2 * half)
    angles = -back * frequencies_D2[:_FASTEST]
    bias_D[:_FASTEST], bias_D[half : half + _FASTEST] = _BACK * angles.cos(), _BACK * angles.sin()
    return bias_D
