"""Are the bytes that the estimate names the ones that PyTorch keeps, and its sums those of a calculation by hand?"""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, MixtralConfig, Qwen3Config

from selfaug.common.errors import ConfigError
from selfaug.training.estimate import (
    FOUR_BIT,
    MicroBatch,
    ModelSizes,
    Setup,
    estimate_flops,
    estimate_memory,
    kept_bytes,
)

WIDTHS = {
    "hidden_size": 96,
    "intermediate_size": 320,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 256,
}


def kept_by_autograd(
    layers: int, kind: type, *, dropout: float | None, masked: bool, weights: torch.dtype, autocast: bool
) -> int:
    """Bytes of the different storages, other than weights, that autograd saves in a forward pass of 3 × 64 tokens."""
    model = AutoModelForCausalLM.from_config(kind(num_hidden_layers=layers, **WIDTHS)).to(weights).train()
    if dropout is not None:
        model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", lora_dropout=dropout))
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept.append(tensor)
        return tensor

    attended = torch.ones(3, 64, dtype=torch.long)
    if masked:
        attended[0, 50:] = 0
    ids = torch.randint(0, 256, (3, 64))
    context = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    body = model.model if dropout is None else model.get_base_model().model
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), context:
        body(input_ids=ids, attention_mask=attended, use_cache=False)
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}.values())


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen3Config])
@pytest.mark.parametrize("dropout", [None, 0.0, 0.1], ids=["full", "LoRA", "LoRA with dropout"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("weights", "autocast"), [(torch.float32, False), (torch.bfloat16, True), (torch.float32, True)]
)
def test_a_layer_keeps_what_the_estimate_says(
    kind: type, dropout: float | None, masked: bool, weights: torch.dtype, autocast: bool
) -> None:
    one, two = (
        kept_by_autograd(layers, kind, dropout=dropout, masked=masked, weights=weights, autocast=autocast)
        for layers in (1, 2)
    )
    model = ModelSizes.of(kind(num_hidden_layers=2, **WIDTHS))
    assert (model.queries, model.keys, model.hidden) == (128, 64, 96)
    full = dropout is None
    setup = Setup(
        None if full else 8,
        linear_bytes=weights.itemsize,
        trained_bytes=weights.itemsize if full else 4,
        compute_bytes=2 if autocast else 4,
        dropout_bytes=4 if dropout else None,
    )
    estimate = kept_bytes(model, setup, MicroBatch(3, 64, 0, 0, 0, masked=masked))
    assert two > one  # the second layer's share is what is compared; scalars of norms and attention are left out
    assert estimate == pytest.approx(two - one, rel=0.02)


@pytest.mark.parametrize("tied", [False, True])
def test_the_numbers_of_weights_are_those_of_the_model(tied: bool) -> None:
    config = LlamaConfig(num_hidden_layers=3, tie_word_embeddings=tied, **WIDTHS)
    model, sizes = AutoModelForCausalLM.from_config(config), ModelSizes.of(config)
    assert sizes.weights == sum(parameter.numel() for parameter in model.parameters())
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "down_proj"]))
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert sizes.adapter(8, ("q_proj", "down_proj")) == trained


def test_models_of_other_kinds_are_refused_by_name() -> None:
    for config in (GPT2Config(), MixtralConfig()):
        with pytest.raises(ConfigError, match=config.model_type):
            ModelSizes.of(config)
    assert ModelSizes.of(Gemma2Config()).layers == Gemma2Config().num_hidden_layers


# By hand: L 2, H 4, Q 8, K 4, I 16, V 100; a layer 2·4·8 + 2·4·4 + 3·4·16 = 288, table 400, norms 5·4 = 20.
HAND = ModelSizes(2, 4, 8, 4, 16, 100, tied=False)
BATCH = MicroBatch(rows=2, tokens=10, responses=6, aligned=12, reference=14)


def test_full_training_by_hand() -> None:
    assert HAND.weights == 2 * 288 + 2 * 400 + 20 == 1396
    memory = estimate_memory(HAND, Setup(None, block_bytes=10**9), BATCH)
    # A token of a layer, in numbers: norms 4·4, inputs 4 + 4 + 16, attention 2·8 + 2·4, feed-forward 3·16 = 112.
    layer = 20 * 112 * 4
    assert kept_bytes(HAND, Setup(None), BATCH) == layer
    final = 20 * 4 * 16 + 2 * 12 * 4 * 4
    block = 12 * 100 * 4 * 2
    loss = 2 * layer + final + block + 400 * 4
    turn = 2 * layer + 20 * 4 * (3 * 16 + 2 * 4) + final + 2 * 400 * 4
    end = 1396 * 4 + layer + 20 * 4 * (3 * 16 + 2 * 4)
    assert loss > turn > end
    assert memory.total == 1396 * 4 + 2 * 1396 * 4 + loss
    assert (memory.weights, memory.optimizer, memory.frozen, memory.adapter) == (5584, 11168, 0, 0)
    # With many weights and one token the end of the backward pass is the peak.
    few = estimate_memory(HAND, Setup(None, reference="path"), MicroBatch(1, 1, 1, 0, 0))
    assert few.gradients == 1396 * 4
    assert few.frozen == 1396 * 4


def test_a_frozen_head_has_no_gradient_and_no_averages() -> None:
    setup = Setup(None, reference="cached", block_bytes=10**9)
    trained, frozen = (estimate_memory(HAND, replace(setup, frozen_head=head), BATCH) for head in (False, True))
    assert trained.optimizer - frozen.optimizer == 2 * 400 * 4
    assert (trained.gradients, frozen.gradients) == (400 * 4, 0)
    assert estimate_flops(HAND, replace(setup, frozen_head=True), BATCH).loss == 2 * 400 * (6 * 2 + 12 * 3)


def test_lora_with_checkpointing_by_hand() -> None:
    setup = Setup(
        2, linear_bytes=FOUR_BIT, rest_bytes=2, trained_bytes=2, averages_bytes=4, compute_bytes=2, checkpointing=True
    )
    # r (in + out): q 12, k 8, v 8, o 12, gate 20, up 20, down 20.
    trained = 2 * 2 * 100
    assert HAND.adapter(2, setup.targets) == trained
    memory = estimate_memory(HAND, replace(setup, reference="initial"), BATCH)
    assert memory.adapter == 2 * trained * 2
    assert memory.optimizer == 2 * trained * 2
    assert memory.weights == pytest.approx(576 * FOUR_BIT + 820 * 2)
    # Norms 2·4·4 bytes; inputs 4 + 4 + 16, adapters 7·2, attention 24, feed-forward 48 at 2 bytes.
    layer = 20 * (32 + 2 * (24 + 14 + 24 + 48))
    assert kept_bytes(HAND, setup, BATCH) == layer
    inputs = 2 * 20 * 4 * 2
    assert memory.activations == inputs + layer + 20 * 2 * (3 * 16 + 2 * 4)
    without = estimate_memory(HAND, replace(setup, checkpointing=False, reference="none"), BATCH)
    assert without.activations == 2 * layer + 20 * 2 * (3 * 16 + 2 * 4)


def test_devices_share_what_their_kind_of_sharding_splits() -> None:
    alone = estimate_memory(HAND, Setup(None, reference="path"), BATCH)
    copies = estimate_memory(HAND, Setup(None, reference="path", devices=4), BATCH)
    assert copies == alone
    zero2 = estimate_memory(HAND, Setup(None, reference="path", devices=4, sharding="optimizer"), BATCH)
    assert (zero2.weights, zero2.optimizer, zero2.gathered) == (alone.weights, alone.optimizer / 4, 0)
    whole = estimate_memory(HAND, Setup(None, reference="path", devices=4, sharding="all"), BATCH)
    assert (whole.weights, whole.frozen, whole.optimizer) == (alone.weights / 4, alone.frozen / 4, alone.optimizer / 4)
    assert whole.gathered == 2 * 288 * 4 + 400 * 4


def test_arithmetic_by_hand() -> None:
    full = estimate_flops(HAND, Setup(None, reference="path"), BATCH)
    attention = 2 * 2 * 10 * 8  # a token, over half the row
    assert full.training == 20 * (3 * 2 * 576 + 3 * attention)
    assert full.reference == 14 * (2 * 576 + attention)
    assert full.loss == 2 * 400 * (6 * 3 + 12 * 4)
    lora = estimate_flops(HAND, Setup(2, reference="cached", checkpointing=True), BATCH)
    forward = 2 * 576 + 2 * 400 + attention
    assert lora.training == 20 * (2 * forward + 2 * 576 + 4 * 400 + 2 * attention)
    assert lora.reference == 0
    assert lora.loss == 2 * 400 * (6 * 2 + 12 * 3)
    assert estimate_flops(HAND, Setup(2, reference="none"), BATCH).loss == 2 * 400 * 6 * 2
