"""Distances between base and tuned model, token by token: next-token distributions and hidden states.

    shift_t = KL(base(· | tokens up to t) ‖ tuned(· | tokens up to t)), in nats

Each batch passes twice through one loaded model (adapter off, adapter on). Logits are computed in the objective's row
blocks, never in full. The base's hidden states of each layer are kept until the tuned pass reaches that layer.

Shapes: B texts of a batch, T tokens, P measured positions of the batch, H hidden, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selfaug.common.errors import ConfigError
from selfaug.model.parts import body_of, head_of
from selfaug.model.switch import evaluating
from selfaug.objective import NLL, BaseToTuned, TunedToBase
from selfaug.objective.values import ReferenceNLL, row_values
from selfaug.reference import Reference
from selfaug.shift.tally import MEASURES, Tally

__all__ = ["Text", "decoder_layers", "measure"]

_TERMS = (BaseToTuned("base_to_tuned"), TunedToBase("tuned_to_base"), ReferenceNLL("base_nll"), NLL("tuned_nll"))
assert tuple(term.name for term in _TERMS) == MEASURES


@dataclass(frozen=True)
class Text:
    """Token ids of a text, at least two, and the region of each.

    Every position that has a next token is measured, and counts to the region of its own token.
    """

    input_ids: Sequence[int]
    regions: Sequence[str]


@torch.no_grad()
def measure(
    model: nn.Module,
    base: Reference,
    texts: Sequence[Text],
    *,
    layers: bool = True,
    batch_tokens: int = 4096,
    block_bytes: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Return means per token by region, position and layer, as :meth:`selfaug.shift.tally.Tally.summary` does.

    Args:
        model: Tuned causal LM, without PEFT's wrapper: the adapter's layers are in it, switched on.
        base: Reference that returns the base's hidden states: the adapter switched off, or another model.
        texts: Texts in any order.
        layers: Whether the hidden states after every layer are compared too; takes memory for L · P · H numbers.
        batch_tokens: Largest number of tokens in a pass, padding included; a longer text passes alone.
        block_bytes: Memory for logits in bytes; ``None`` for the device's default.
        progress: Function called with the number of texts done.

    Raises:
        ConfigError: If a model's output is not finite.
        ValueError: If a text has fewer than two tokens.
    """
    if any(len(text.input_ids) < 2 or len(text.input_ids) != len(text.regions) for text in texts):
        raise ValueError("a text needs two tokens, and a region for each")
    tally = Tally(len(decoder_layers(model)) if layers else 0)
    done = 0
    with evaluating(model):
        for batch in _batches(texts, batch_tokens):
            values_MP, layers_LMP = _compare(model, base, batch, layers, block_bytes)
            if not np.isfinite(values_MP).all():
                raise ConfigError(
                    "the output of base or tuned model is not finite, so there is no distance between them",
                    "check the run's log for a loss that diverged, or load in another number format (--dtype).",
                )
            start = 0
            for text in batch:
                part = slice(start, start + len(text.input_ids) - 1)
                tally.add(text.regions[:-1], values_MP[:, part], None if not layers else layers_LMP[:, :, part])
                start = part.stop
            done += len(batch)
            if progress is not None:
                progress(done)
    return tally.summary()


def _batches(texts: Sequence[Text], batch_tokens: int) -> Iterator[list[Text]]:
    """Yield batches of texts of similar length, longest first, so that too little memory shows at once."""
    batch: list[Text] = []
    for text in sorted(texts, key=lambda item: -len(item.input_ids)):
        if batch and (len(batch) + 1) * len(batch[0].input_ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


def _compare(
    model: nn.Module, base: Reference, batch: Sequence[Text], layers: bool, block_bytes: int | None
) -> tuple[Any, Any]:
    """Return the measures (M × P) in the order of the batch's texts, and those of layers (L × 2 × P, or empty)."""
    device = model.get_input_embeddings().weight.device  # type: ignore[operator]
    lengths = [len(text.input_ids) for text in batch]
    # Padding follows the text, so that causal attention does not reach it.
    ids_BT = torch.zeros(len(batch), max(lengths), dtype=torch.int64)
    for b, text in enumerate(batch):
        ids_BT[b, : lengths[b]] = torch.tensor(text.input_ids)
    real_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    inputs = {
        "input_ids": ids_BT.to(device),
        "attention_mask": real_BT.long().to(device),
        "use_cache": False,
    }
    measured_BT = real_BT[:, 1:]  # position t is measured where t + 1 is real
    index_P = torch.nonzero(torch.cat([measured_BT, torch.zeros(len(batch), 1, dtype=torch.bool)], 1).view(-1))[:, 0]
    label_P = ids_BT[:, 1:][measured_BT]

    kept_LPH: list[Tensor] = []
    with base.serving(model) as reference:
        base_head = base.head(model)
        with _watching(reference, index_P, kept_LPH.append if layers else None):
            reference_PH = _final(reference, inputs, index_P)
    change_LMP: list[Any] = []

    def compare(hidden_PH: Tensor) -> None:
        change_LMP.append(_layer_change(kept_LPH[len(change_LMP)].to(hidden_PH.device), hidden_PH).cpu().numpy())
        kept_LPH[len(change_LMP) - 1] = hidden_PH.new_empty(0)  # frees the memory

    with _watching(model, index_P, compare if layers else None):
        hidden_PH = _final(model, inputs, index_P)
    head = head_of(model)
    head_device = head.weight_VH.device
    values = row_values(
        hidden_PH.to(head_device),
        head,
        _TERMS,
        reference_NH=reference_PH.to(head_device),
        reference_head=base_head,
        label_N=label_P.to(head_device),
        block_bytes=block_bytes,
    )
    return np.stack([values[name].double().cpu().numpy() for name in MEASURES]), np.array(change_LMP)


def _final(model: nn.Module, inputs: dict[str, Any], index_P: Tensor) -> Tensor:
    hidden: Tensor = body_of(model)(**inputs).last_hidden_state
    return hidden.reshape(-1, hidden.shape[-1])[index_P.to(hidden.device)]


def _layer_change(base_PH: Tensor, tuned_PH: Tensor) -> Tensor:
    """Return ``cos(base, tuned)`` and ``|tuned| / |base| - 1`` of each row, 2 × P."""
    base_PH, tuned_PH = base_PH.float(), tuned_PH.float()
    base_P, tuned_P = base_PH.norm(dim=-1), tuned_PH.norm(dim=-1)
    return torch.stack([torch.cosine_similarity(base_PH, tuned_PH, dim=-1), tuned_P / base_P - 1])


@contextmanager
def _watching(model: nn.Module, index_P: Tensor, see: Callable[[Tensor], None] | None) -> Iterator[None]:
    """Call ``see`` inside the block with the measured rows of each layer's output, in the order of the layers."""

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        assert see is not None
        see(hidden.reshape(-1, hidden.shape[-1])[index_P.to(hidden.device)])

    handles = [] if see is None else [layer.register_forward_hook(hook) for layer in decoder_layers(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of the model's body, in order.

    Raises:
        ConfigError: If they are not found.
    """
    count = model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr, operator]
    for module in body_of(model).modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise ConfigError(
        f"the {count} layers of {type(model).__name__} were not found, so their hidden states cannot be compared",
        "pass --layers false to measure the distributions alone.",
    )
