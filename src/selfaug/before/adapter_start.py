"""The start of an adapter from a part of the pretrained weights, and its export as a plain adapter on the full weights.

PEFT computes the part ``s B₀ A₀``. During training the frozen weights are ``W - s B₀ A₀`` and the adapter starts at
(A₀, B₀), so that the first output is the base's. The exported adapter is ``s (B A - B₀ A₀)`` on top of W, of twice the
rank.

Shapes: A is R × I, B is O × R, W is O × I.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn

from selfaug.before.fisher import linear_pairs
from selfaug.before.texts import draw_texts
from selfaug.common.errors import ConfigError
from selfaug.common.progress import counting
from selfaug.common.store import keep_tensors, kept_tensors
from selfaug.common.terminal import is_main, say
from selfaug.model.libraries import LoraPair, corda_parts, lora_pairs, pissa_parts
from selfaug.model.parts import body_of
from selfaug.model.switch import adapters_off, evaluating
from selfaug.reference.adapter import digest

if TYPE_CHECKING:
    from selfaug.before.context import BeforeTraining
    from selfaug.methods.base import Start

__all__ = ["FILE", "AdapterStart"]

FILE = "adapter_start.safetensors"

Part = tuple[Tensor, Tensor]


class AdapterStart:
    """The start of an adapter, which the constructor subtracts from the weights.

    Args:
        before: Run before its first step, with a fresh adapter.
        start: The method's choice of the start.

    Raises:
        ConfigError: If the weights are quantised, in float64, or smaller than the adapter's rank.
    """

    def __init__(self, before: BeforeTraining, start: Start) -> None:
        self._model = before.model
        self._path = before.folder / FILE
        pairs = self._pairs()
        _check(before, pairs)
        texts = [] if start.texts is None else draw_texts(before, start.texts)
        self._made_by = {
            "kind": start.kind,
            "base": digest({str(i): _weight(pair) for i, pair in enumerate(pairs)}),
            "texts": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
            "adapter": json.dumps([[list(pair.A.shape), list(pair.B.shape), pair.scale] for pair in pairs]),
            "autocast": before.accelerator.mixed_precision,
        }
        kept = kept_tensors(self._path, self._made_by)
        if kept is None:
            self._parts = _compute(before, start, pairs, texts)
        else:
            self._parts = [(kept[0][f"A.{i}"], kept[0][f"B.{i}"]) for i in range(len(pairs))]
        # Devices may round differently, so all ranks take the first one's start.
        self._parts = [
            broadcast([A.to(p.A.device), B.to(p.A.device)]) for p, (A, B) in zip(pairs, self._parts, strict=True)
        ]
        with torch.no_grad():
            for pair, (A_RI, B_OR) in zip(pairs, self._parts, strict=True):
                pair.A.copy_(A_RI)
                pair.B.copy_(B_OR)
                _add(pair, A_RI, B_OR, -1.0)

    def save(self) -> None:
        """Store the start beside the checkpoints, since a resumed run must subtract exactly the same."""
        if is_main() and kept_tensors(self._path, self._made_by) is None:
            parts = {f"{n}.{i}": t for i, part in enumerate(self._parts) for n, t in zip("AB", part, strict=True)}
            keep_tensors(self._path, parts, self._made_by)

    @torch.no_grad()
    def finish(self, peft_config: Any) -> None:
        """Restore the weights, and turn the adapter into a plain one of twice the rank with the same output.

        Args:
            peft_config: Configuration of the adapter, changed in place.
        """
        for pair, (A_RI, B_OR) in zip(self._pairs(), self._parts, strict=True):
            _add(pair, A_RI, B_OR, 1.0)
            layer: Any = pair.layer
            wide_A, wide_B = layer.lora_A[pair.name], layer.lora_B[pair.name]
            # (B, -B₀) (A; A₀) = B A - B₀ A₀
            wide_A.weight = nn.Parameter(torch.cat([pair.A, A_RI.to(pair.A)]))
            wide_B.weight = nn.Parameter(torch.cat([pair.B, -B_OR.to(pair.B)], dim=1))
            wide_A.out_features = wide_B.in_features = layer.r[pair.name] = 2 * layer.r[pair.name]
        factor = math.sqrt(2) if peft_config.use_rslora else 2  # keeps the scale s
        peft_config.r, peft_config.lora_alpha = 2 * peft_config.r, factor * peft_config.lora_alpha
        peft_config.rank_pattern = {key: 2 * r for key, r in peft_config.rank_pattern.items()}
        peft_config.alpha_pattern = {key: factor * alpha for key, alpha in peft_config.alpha_pattern.items()}

    def _pairs(self) -> list[LoraPair]:
        return linear_pairs(self._model)


def _check(before: BeforeTraining, pairs: Sequence[LoraPair]) -> None:
    method = before.method.name
    if len(pairs) < len(lora_pairs(before.model)):
        raise ConfigError(
            f"method={method!r} starts adapters of linear layers, and there is one on an embedding.",
            "leave embeddings out of target_modules.",
        )
    for pair in pairs:
        weight = _weight(pair)
        if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ConfigError(
                f"method={method!r} takes the adapter's start out of the weights, and these are {weight.dtype} "
                "(quantised, or a format that PEFT does not take).",
                "load the model in float32 or bfloat16 without quantisation, or choose another method.",
            )
    smallest = min(pairs, key=lambda pair: min(_weight(pair).shape) - len(pair.A))
    shape = tuple(_weight(smallest).shape)
    if len(smallest.A) > min(shape):
        raise ConfigError(
            f"method={method!r} takes {len(smallest.A)} directions out of a weight of shape {shape}, which has fewer.",
            f"give a rank of at most {min(shape)} (--lora_r).",
        )


@torch.no_grad()
def _compute(
    before: BeforeTraining, start: Start, pairs: Sequence[LoraPair], texts: Sequence[Sequence[int]]
) -> list[Part]:
    model = before.model
    if start.kind == "pissa":
        say(f"the principal part of {len(pairs)} weights ...")
        return [pissa_parts(pair) for pair in pairs]
    assert start.texts is not None
    say(f"the least used part of {len(pairs)} weights, by {len(texts)} rows of {start.texts.name} ...")

    def run_model() -> None:
        with (
            before.autocast(),
            adapters_off(model),
            evaluating(model),
            counting("texts", len(texts)) as bar,
        ):
            for done, ids in enumerate(texts, start=1):
                body_of(model)(input_ids=torch.tensor([list(ids)], device=pairs[0].A.device), use_cache=False)
                bar(done)

    return corda_parts(model, copy.deepcopy(before.peft_config), pairs, run_model)


def _add(pair: LoraPair, A_RI: Tensor, B_OR: Tensor, sign: float) -> None:
    weight = _weight(pair)
    part_OI = sign * pair.scale * (B_OR.float() @ A_RI.float())
    turned = part_OI.T if getattr(pair.layer, "fan_in_fan_out", False) else part_OI
    weight.copy_((weight.float() + turned).to(weight.dtype))


def _weight(pair: LoraPair) -> Tensor:
    weight: Tensor = pair.layer.get_base_layer().weight.data  # type: ignore[operator]
    return weight
