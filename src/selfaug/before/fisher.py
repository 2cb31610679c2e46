"""The diagonal Fisher information of the base's next-token distribution for each adapted weight.

It is computed once before the first step and stored in the output folder together with everything that determines it.

Shapes: T tokens of a row, H hidden, N rows of a block, V vocabulary; a weight W is O × I.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from selfaug.before.texts import draw_texts
from selfaug.common.errors import ConfigError
from selfaug.common.progress import counting
from selfaug.common.store import keep_tensors, kept_tensors
from selfaug.common.terminal import is_main, say
from selfaug.methods.requests import Texts
from selfaug.model.libraries import LoraPair, lora_pairs
from selfaug.model.parts import body_of, head_of
from selfaug.model.switch import adapters_off, evaluating, uncached_autocast
from selfaug.reference.adapter import digest

if TYPE_CHECKING:
    from selfaug.before.context import BeforeTraining
    from selfaug.objective.head import LMHead

__all__ = ["FILE", "ensure_fisher", "fisher_diagonal", "linear_pairs"]

FILE = "fisher.safetensors"
_BLOCK = 256

Draw = Callable[[Tensor], Tensor]


def fisher_diagonal(
    model: nn.Module,
    texts: Sequence[Sequence[int]],
    *,
    draw: Draw | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[Tensor], int]:
    """Return ``Σ_rows (∂/∂W Σ_t log p(y_t | x_≤t))²`` for each adapted W, and the number of tokens to divide it by.

    Every y_t is drawn from the base's distribution at t, so the scores of a row's positions have mean 0 and are
    independent given x. The square of their sum then has the same expectation as the sum of their squares, and one
    backward pass a row gives an unbiased estimate of the Fisher matrix per token. (The text's own next tokens would
    give the "empirical Fisher", which is another matrix.)

    Args:
        model: Causal LM inside all wrappers, with a LoRA adapter, which is switched off meanwhile.
        texts: Token ids of each row.
        draw: Function from logits (N × V) to tokens (N); by default a draw from their softmax.
        seed: Seed of these draws.
        progress: Function called with the number of rows done.

    Returns:
        A tensor in the layout of each linear layer's own weight, float32 (float64 for float64 weights), in the order
        of :func:`selfaug.model.libraries.lora_pairs`.

    Raises:
        ConfigError: If a pretrained weight is quantised.
    """
    weights = [_weight(pair) for pair in linear_pairs(model)]
    generator = torch.Generator(weights[0].device).manual_seed(seed)
    draw = draw or (lambda logits: torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1))
    sums = [torch.zeros_like(w, dtype=torch.promote_types(w.dtype, torch.float32)) for w in weights]
    frozen = [w for w in weights if not w.requires_grad]
    tokens = 0
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        with torch.enable_grad(), uncached_autocast(), adapters_off(model), evaluating(model):
            head = head_of(model)
            for done, ids in enumerate(texts, start=1):
                ids_BT = torch.tensor([list(ids)], device=weights[0].device)
                hidden_TH = body_of(model)(input_ids=ids_BT, use_cache=False).last_hidden_state[0]
                slope_TH = _slope(hidden_TH, head, draw)
                # An expert that no token was routed to has no gradient.
                gradients = torch.autograd.grad(hidden_TH, weights, slope_TH, allow_unused=True)
                for total, gradient in zip(sums, gradients, strict=True):
                    if gradient is not None:
                        total.add_(gradient.to(total.dtype).square_())
                tokens += len(hidden_TH)
                if progress is not None:
                    progress(done)
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
    return sums, tokens


def _slope(hidden_TH: Tensor, head: LMHead, draw: Draw) -> Tensor:
    """Return ``∂/∂hidden Σ_t log p(y_t)``, computed in row blocks."""
    parts = []
    for block_NH in hidden_TH.detach().split(_BLOCK):
        block_NH.requires_grad_(True)
        logits_NV = head.logits(block_NH.to(head.weight_VH.dtype))
        logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
        label_N = draw(logits_NV.detach())
        score = logits_NV.log_softmax(-1).gather(1, label_N[:, None]).sum()
        parts.append(torch.autograd.grad(score, block_NH)[0])
    return torch.cat(parts)


def linear_pairs(model: nn.Module) -> list[LoraPair]:
    """Return the LoRA layers that adapt linear layers."""
    return [pair for pair in lora_pairs(model) if pair.W is not None]


def _weight(pair: LoraPair) -> Tensor:
    weight: Tensor = pair.layer.get_base_layer().weight  # type: ignore[operator]
    if not weight.is_floating_point():
        raise ConfigError(
            "the pretrained weights are quantised, and the Fisher information of one needs its gradient.",
            "load the model without quantisation, or choose another method.",
        )
    return weight


def ensure_fisher(before: BeforeTraining, wanted: Texts) -> None:
    """Set ``selfaug_fisher`` (O × I), the Fisher diagonal, on each adapted layer of the model.

    It is read from the output folder where the same base, texts and seed made it, and computed otherwise; the ranks
    share the rows.

    Args:
        before: Run before its first step.
        wanted: Texts to compute it on.

    Raises:
        ConfigError: If the rows are a stream, or the model is quantised.
        DataError: If there are no rows.
    """
    texts = draw_texts(before, wanted)
    model = before.model
    pairs = linear_pairs(model)
    made_by = {
        "base": digest({f"{i}": _weight(pair) for i, pair in enumerate(pairs)}),
        "dtype": str(model.dtype),
        "autocast": before.accelerator.mixed_precision,
        "texts": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
        "seed": str(before.config.seed),
    }
    path = before.folder / FILE
    kept = kept_tensors(path, made_by)
    before.accelerator.wait_for_everyone()  # no rank writes while another still reads
    if kept is not None:
        fisher = [kept[0][f"layer.{i}"] for i in range(len(pairs))]
    else:
        if is_main():
            say(f"the Fisher information of {len(pairs)} layers from {len(texts)} rows of {wanted.name} ...")
        own_texts = texts[before.rank :: before.ranks]
        with before.autocast(), counting("Fisher information", len(own_texts)) as progress:
            sums, tokens = fisher_diagonal(model, own_texts, seed=before.config.seed + before.rank, progress=progress)
        device = before.accelerator.device
        total = before.accelerator.reduce(torch.tensor(float(tokens), device=device), reduction="sum")
        fisher = [before.accelerator.reduce(part.to(device), reduction="sum") / total for part in sums]
        if is_main():
            keep_tensors(path, {f"layer.{i}": part for i, part in enumerate(fisher)}, made_by)
    for pair, part in zip(pairs, fisher, strict=True):
        turned = part.T if getattr(pair.layer, "fan_in_fan_out", False) else part
        pair.layer.selfaug_fisher = turned.to(pair.A.device)
