"""What does a reference pass give? Hidden states: of a batch at once, or of a long prompt in slices.

A prompt in slices leaves behind its keys and values, and hidden states at its drawn positions alone; activations exist
for one slice at a time. Shapes: B rows and T tokens of a batch, S tokens of a slice, N drawn positions, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from selfaug.model.parts import body_of, layer_types

__all__ = ["batch_hidden", "can_slice", "prompts_hidden", "slice_size", "sliced_hidden", "slices_agree"]

# Cached keys and values are all that such layers carry from one slice to the next.
_SLICEABLE = frozenset({"full_attention", "sliding_attention"})
# Attention without kernels of its own for it makes a mask of S × T: at most so many entries.
_MASK = 2**26
_SHORTEST = 256


def batch_hidden(base: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """B·T × H: the final hidden states of a served reference, row after row.

    Args:
        base: What :meth:`selfaug.reference.Reference.serving` yields.
        inputs: Of its body.
    """
    hidden: Tensor = body_of(base)(**{**inputs, "use_cache": False}).last_hidden_state
    return hidden.reshape(-1, hidden.shape[-1])


def sliced_hidden(base: nn.Module, input_ids_T: Tensor, index_N: Tensor, size: int) -> Tensor:
    """N × H: the final hidden states of one prompt at ``index_N``, equal to rounding to those of a pass at once.

    Args:
        base: What :meth:`selfaug.reference.Reference.serving` yields.
        input_ids_T: The prompt.
        index_N: Places in it; rising.
        size: Tokens of a slice, at most; see :func:`slice_size`.
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
        # A copy, where indexing with all positions of a slice could give a view that keeps the whole alive.
        kept.append(outputs.last_hidden_state[0].index_select(0, index_N[inside] - start))
    return torch.cat(kept)


def slice_size(tokens: int, wanted: int) -> int:
    """S: ``wanted``, less for prompts so long that the attention mask of a slice, S × T, would outgrow the rest."""
    return min(wanted, max(_SHORTEST, _MASK // max(tokens, 1)))


def prompts_hidden(
    base: nn.Module, inputs: Mapping[str, Any], long: Sequence[tuple[Tensor, Tensor]], size: int | None
) -> Tensor:
    """R × H: the final hidden states of a batch (unless it is empty), then those of each long prompt's drawn positions.

    Args:
        base: What :meth:`selfaug.reference.Reference.serving` yields.
        inputs: Of its body, for the prompts that go together.
        long: Tokens and drawn positions of each prompt that goes by itself.
        size: Tokens of a slice.
    """
    parts = [batch_hidden(base, inputs)] if inputs else []
    for input_ids_T, index_N in long:
        assert size is not None
        parts.append(sliced_hidden(base, input_ids_T, index_N, size))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def can_slice(config: Any) -> bool:
    """Whether all that a layer carries along a row is keys and values: full and sliding attention do, by their names.

    Not recurrent and convolutional layers (on a CPU they agree, but their kernels on a GPU have not been tried), nor
    chunked and indexed attention (not tried).
    """
    text = config.get_text_config()
    recurrent = any(getattr(text, name, None) for name in ("mamba_d_state", "state_size", "ssm_cfg"))
    return layer_types(config) <= _SLICEABLE and not recurrent


def slices_agree(base: nn.Module, input_ids_T: Tensor) -> bool:
    """Whether a few tokens give the same hidden states in slices as at once; tried before the first step."""
    everywhere = torch.arange(len(input_ids_T), device=input_ids_T.device)
    try:
        sliced_NH = sliced_hidden(base, input_ids_T, everywhere, 3)
    except (TypeError, ValueError, NotImplementedError, AttributeError):  # a model that takes no cache, or not this one
        return False
    whole_NH = batch_hidden(base, {"input_ids": input_ids_T[None]})
    # Kernels for another length add in another order, and 16 bits keep 8 of each number.
    rounded = whole_NH.dtype.itemsize == 2 or torch.is_autocast_enabled(whole_NH.device.type)
    distance = (sliced_NH - whole_NH).float().norm() / whole_NH.float().norm()
    return float(distance) < (0.05 if rounded else 1e-3)
