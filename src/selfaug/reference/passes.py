"""Reference passes: hidden states of a batch at once, or of a long prompt in slices.

Of a prompt in slices, the keys and values are kept, and the hidden states at its drawn positions; activations exist for
one slice at a time.

Shapes: B rows and T tokens of a batch, S tokens of a slice, N drawn positions, R rows of all hidden states, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from selfaug.model.parts import body_of, layer_types
from selfaug.planning.reference_batch import slice_size

__all__ = ["batch_hidden", "can_slice", "idle_passes", "prompts_hidden", "sliced_hidden", "slices_agree"]

# Kinds of layers that carry nothing but keys and values from one slice to the next.
_SLICEABLE = frozenset({"full_attention", "sliding_attention"})


def batch_hidden(base: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Return the final hidden states of a batch, row after row, B·T × H.

    Args:
        base: Model that :meth:`selfaug.reference.Reference.serving` yields.
        inputs: Inputs of its body.
    """
    hidden: Tensor = body_of(base)(**{**inputs, "use_cache": False}).last_hidden_state
    return hidden.reshape(-1, hidden.shape[-1])


def sliced_hidden(base: nn.Module, input_ids_T: Tensor, index_N: Tensor, size: int) -> Tensor:
    """Return the final hidden states of one prompt at ``index_N``, N × H, computed in slices.

    They equal those of a single pass to rounding.

    Args:
        base: Model that :meth:`selfaug.reference.Reference.serving` yields.
        input_ids_T: Token ids of the prompt.
        index_N: Positions in the prompt, rising; on the CPU, or every slice waits for the device.
        size: Largest number of tokens of a slice; see :func:`selfaug.planning.reference_batch.slice_size`.
    """
    from transformers import DynamicCache

    cache = DynamicCache(config=base.config)
    size = slice_size(len(input_ids_T), size)
    kept = []
    for start in range(0, len(input_ids_T), size):
        slice_S = input_ids_T[start : start + size]
        places = torch.arange(start, start + len(slice_S), device=input_ids_T.device)[None]
        outputs = body_of(base)(input_ids=slice_S[None], position_ids=places, past_key_values=cache, use_cache=True)
        inside = (index_N >= start) & (index_N < start + len(slice_S))
        rows_N = (index_N[inside] - start).to(input_ids_T.device, non_blocking=True)
        # index_select copies; a view would keep the hidden states of the whole slice alive.
        kept.append(outputs.last_hidden_state[0].index_select(0, rows_N))
    return torch.cat(kept)


def prompts_hidden(
    base: nn.Module, inputs: Mapping[str, Any], long: Sequence[tuple[Tensor, Tensor]], size: int | None
) -> Tensor:
    """Return the final hidden states of a batch, then those of each long prompt's drawn positions, R × H.

    Args:
        base: Model that :meth:`selfaug.reference.Reference.serving` yields.
        inputs: Inputs of its body for the batch; empty for no batch.
        long: Token ids and drawn positions of each prompt that runs by itself.
        size: Number of tokens of a slice; ``None`` only without long prompts.
    """
    parts = [batch_hidden(base, inputs)] if inputs else []
    for input_ids_T, index_N in long:
        assert size is not None
        parts.append(sliced_hidden(base, input_ids_T, index_N, size))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def idle_passes(base: nn.Module, input_ids_BT: Tensor, count: int) -> None:
    """Run passes on one token, whose results are not used.

    Every rank of a sharded model must run as many passes as the rank with the most: one that ran fewer would leave the
    others waiting for its weights.
    """
    one = input_ids_BT[:1, :1]
    for _ in range(count):
        batch_hidden(base, {"input_ids": one, "attention_mask": torch.ones_like(one)})


def can_slice(config: Any) -> bool:
    """Whether every layer carries nothing but keys and values along a row, as full and sliding attention do.

    Recurrent and convolutional layers are excluded (they agree on a CPU, but their GPU kernels are untested), and so
    are chunked and indexed attention (untested).
    """
    text = config.get_text_config()
    recurrent = any(getattr(text, name, None) for name in ("mamba_d_state", "state_size", "ssm_cfg"))
    return layer_types(config) <= _SLICEABLE and not recurrent


def slices_agree(base: nn.Module, input_ids_T: Tensor) -> bool:
    """Whether a few tokens have the same hidden states in slices as in one pass; called before the first step."""
    everywhere = torch.arange(len(input_ids_T))
    try:
        sliced_NH = sliced_hidden(base, input_ids_T, everywhere, 3)
    except (TypeError, ValueError, NotImplementedError, AttributeError):  # the model takes no such cache
        return False
    whole_NH = batch_hidden(base, {"input_ids": input_ids_T[None]})
    # Kernels for another length add in another order, and bfloat16 has 8 significant bits.
    rounded = whole_NH.dtype.itemsize == 2 or torch.is_autocast_enabled(whole_NH.device.type)
    distance = (sliced_NH - whole_NH).float().norm() / whole_NH.float().norm()
    return float(distance) < (0.05 if rounded else 1e-3)
