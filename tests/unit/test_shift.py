"""Is the shift what dense logits give, token by token, region by region and layer by layer?"""

from __future__ import annotations

import math
import subprocess
import sys
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfaug.common.errors import ConfigError
from selfaug.objective import NLL, BaseToTuned, LMHead, Rows, TunedToBase, WeightedTerm, sweep
from selfaug.objective.values import ReferenceNLL, row_values
from selfaug.reference.adapter import BaseReference
from selfaug.shift.measure import Text, measure
from selfaug.shift.regions import REGIONS
from selfaug.shift.tally import MEASURES, TOTALS, bin_of, bin_range, ratio_mean
from tests.models import VOCAB, lora_config, perturb_adapter, tiny, with_lora
from tests.oracles import dense

TERMS = (BaseToTuned("base_to_tuned"), TunedToBase("tuned_to_base"), ReferenceNLL("base_nll"), NLL("tuned_nll"))


def texts(count: int, seed: int = 0, longest: int = 40) -> list[Text]:
    """Random ids of odd lengths, each token in a region drawn at random: the measure must not care which."""
    draw = np.random.default_rng(seed)
    found = []
    for number in range(count):
        length = int(draw.integers(2, longest))
        task = REGIONS[:-1] if number % 3 else REGIONS[-1:]
        found.append(Text(draw.integers(3, VOCAB, length).tolist(), draw.choice(task, length).tolist()))
    return found


# ---- values of rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_bytes", [1, 97 * 4 * 2 * 5, 2**30])
@pytest.mark.parametrize("head", ["bare", "bias", "scale", "cap"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_row_values_equal_dense_logits(dtype: torch.dtype, head: str, block_bytes: int) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden, reference = (torch.randn(23, 16, generator=generator, dtype=dtype) for _ in range(2))
    weight, own = (torch.randn(VOCAB, 16, generator=generator, dtype=dtype) * 0.5 for _ in range(2))
    bias = torch.randn(VOCAB, generator=generator, dtype=dtype) if head == "bias" else None
    scale, cap = (0.6 if head == "scale" else 1.0), (3.0 if head == "cap" else None)
    label = torch.randint(VOCAB, (23,), generator=generator)
    found = row_values(
        hidden, LMHead(weight, bias, scale, cap), TERMS, reference_NH=reference,
        reference_head=LMHead(own, bias, scale, cap), label_N=label, block_bytes=block_bytes,
    )  # fmt: skip
    tuned = dense.logits_NV(hidden.double(), weight.double(), None if bias is None else bias.double(), scale, cap)
    base = dense.logits_NV(reference.double(), own.double(), None if bias is None else bias.double(), scale, cap)
    wanted = {
        "base_to_tuned": dense.alignment_N("base_to_tuned", tuned, base),
        "tuned_to_base": dense.alignment_N("tuned_to_base", tuned, base),
        "base_nll": dense.nll_N(base, label),
        "tuned_nll": dense.nll_N(tuned, label),
    }
    assert wanted["base_to_tuned"].min() > 0.1
    assert (wanted["base_to_tuned"] - wanted["tuned_to_base"]).abs().max() > 0.1
    for name, values in wanted.items():
        assert (found[name].double() - values).abs().max() < (1e-5 if dtype == torch.float32 else 1e-12), name


def test_row_values_sum_to_the_loss_of_the_sweep() -> None:
    generator = torch.Generator().manual_seed(4)
    hidden, reference = torch.randn(2, 31, 8, generator=generator)
    head = LMHead(torch.randn(VOCAB, 8, generator=generator))
    rows = Rows(torch.arange(31), (WeightedTerm(BaseToTuned(), 1.0),), reference_NH=reference)
    values = row_values(hidden, head, [BaseToTuned()], reference_NH=reference)["alignment"]
    assert values.sum().item() == pytest.approx(sweep(hidden, head, [rows]).loss.item(), rel=1e-5)


def test_terms_of_one_name_and_missing_references_are_refused() -> None:
    hidden, head = torch.randn(3, 8), LMHead(torch.randn(VOCAB, 8))
    with pytest.raises(ValueError, match="same name"):
        row_values(hidden, head, [BaseToTuned(), TunedToBase()], reference_NH=hidden)
    with pytest.raises(ValueError, match="needs 3 reference"):
        row_values(hidden, head, [BaseToTuned()])


# ---- the measure ---------------------------------------------------------------------------------------------------


def by_dense_logits(peft_model: torch.nn.Module, found: list[Text]) -> dict[str, dict[str, list[float]]]:
    """Region → measure → value of each token, one text at a time, by the models' own logits."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for text in found:
        ids = torch.tensor([text.input_ids])
        with torch.no_grad():
            tuned = peft_model(input_ids=ids, use_cache=False).logits[0, :-1].double()
            with peft_model.disable_adapter():
                base = peft_model(input_ids=ids, use_cache=False).logits[0, :-1].double()
        measures = {
            "base_to_tuned": dense.alignment_N("base_to_tuned", tuned, base),
            "tuned_to_base": dense.alignment_N("tuned_to_base", tuned, base),
            "base_nll": dense.nll_N(base, ids[0, 1:]),
            "tuned_nll": dense.nll_N(tuned, ids[0, 1:]),
        }
        for name, row in measures.items():
            for region, value in zip(text.regions, row.tolist(), strict=False):
                values[region][name].append(value)
    return values


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gemma2", "cohere", "granite", "falcon_h1", "qwen3_moe"])
def test_shift_equals_dense_logits(arch: str) -> None:
    model = with_lora(tiny(arch, dtype=torch.float32))
    found = texts(9)
    wanted = by_dense_logits(model, found)
    result = measure(model.get_base_model(), BaseReference(), found, batch_tokens=100, block_bytes=VOCAB * 8 * 7)
    assert set(result["regions"]) == set(wanted)
    for region, measures in wanted.items():
        assert np.mean(measures["base_to_tuned"]) > 1e-3
        entry = result["regions"][region]
        assert entry["tokens"] == len(measures["tuned_nll"])
        for name, values in measures.items():
            assert entry[name]["value"] == pytest.approx(float(np.mean(values)), rel=1e-4, abs=1e-5), (region, name)
    for total, members in TOTALS.items():
        both = [value for region in members for value in wanted[region]["base_to_tuned"]]
        assert result["totals"][total]["base_to_tuned"]["value"] == pytest.approx(float(np.mean(both)), rel=1e-4)


def test_a_trained_head_meets_the_base_with_its_own() -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    model = get_peft_model(tiny("llama"), config, autocast_adapter_dtype=False)
    with torch.no_grad():
        model.get_base_model().lm_head.modules_to_save["default"].weight.mul_(1.5)
    found = texts(5)
    wanted = by_dense_logits(model, found)["question"]
    entry = measure(model.get_base_model(), BaseReference(), found)["regions"]["question"]
    assert np.mean(wanted["base_to_tuned"]) > 1e-3
    for name, values in wanted.items():
        assert entry[name]["value"] == pytest.approx(float(np.mean(values)), rel=1e-9), name


def test_batches_and_blocks_do_not_change_the_result() -> None:
    model = with_lora(tiny("llama"))
    found = texts(7)
    one = measure(model.get_base_model(), BaseReference(), found, batch_tokens=1, block_bytes=1)
    many = measure(model.get_base_model(), BaseReference(), list(reversed(found)), batch_tokens=10**6)
    assert one["regions"]["general_text"]["base_to_tuned"]["value"] > 1e-3
    for region, entry in one["regions"].items():
        for name in MEASURES:
            assert entry[name]["value"] == pytest.approx(many["regions"][region][name]["value"], abs=1e-10)
    for place, layer in enumerate(one["layers"]):
        for region, entry in layer["regions"].items():
            other = many["layers"][place]["regions"][region]
            assert entry["cosine"]["value"] == pytest.approx(other["cosine"]["value"], abs=1e-6)


def test_an_adapter_of_zero_steps_is_no_shift() -> None:
    from peft import get_peft_model

    model = get_peft_model(tiny("llama", dtype=torch.float32), lora_config("llama"), autocast_adapter_dtype=False)
    found = texts(6)
    result = measure(model.get_base_model(), BaseReference(), found)
    for entry in (*result["regions"].values(), *result["totals"].values()):
        assert abs(entry["base_to_tuned"]["value"]) < 1e-6
        assert abs(entry["tuned_to_base"]["value"]) < 1e-6
        assert entry["base_nll"]["value"] == entry["tuned_nll"]["value"] > 1
    for layer in result["layers"]:
        for entry in layer["regions"].values():
            assert entry["cosine"]["value"] == pytest.approx(1, abs=1e-6)
            assert entry["norm_change"]["value"] == 0
    perturb_adapter(model)  # the same adapter, once it has learnt something
    assert measure(model.get_base_model(), BaseReference(), found)["totals"]["data"]["base_to_tuned"]["value"] > 1e-3


def test_layers_before_a_change_do_not_move_and_a_doubled_layer_doubles() -> None:
    """The second of two layers alone has an adapter; and base states against twice themselves."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["down_proj"], layers_to_transform=[1], task_type="CAUSAL_LM")
    model = get_peft_model(tiny("llama"), config, autocast_adapter_dtype=False)
    perturb_adapter(model)
    first, second = measure(model.get_base_model(), BaseReference(), texts(5))["layers"]
    assert (first["layer"], second["layer"]) == (1, 2)
    for region, entry in first["regions"].items():
        assert entry["cosine"]["value"] == pytest.approx(1, abs=1e-6)
        assert entry["norm_change"]["value"] == 0
        assert second["regions"][region]["cosine"]["value"] < 0.999
        assert second["regions"][region]["norm_change"]["value"] != 0

    class Doubled(torch.nn.Module):
        def __init__(self, layer: torch.nn.Module, switch: torch.nn.Module) -> None:
            super().__init__()
            self.layer, self.switch = layer, [switch]

        def forward(self, *args: object, **kwargs: object) -> torch.Tensor:
            off = self.switch[0]._disable_adapters
            return self.layer(*args, **kwargs) * (1 if off else 2)

    base = model.get_base_model()
    switch = base.model.layers[1].mlp.down_proj
    base.model.layers[0] = Doubled(base.model.layers[0], switch)
    doubled = measure(base, BaseReference(), texts(5))["layers"][0]["regions"]["question"]
    assert doubled["norm_change"]["value"] == pytest.approx(1, abs=1e-5)
    assert doubled["cosine"]["value"] == pytest.approx(1, abs=1e-6)


def test_the_model_is_left_as_it_was() -> None:
    model = with_lora(tiny("llama")).train()
    modes = [module.training for module in model.modules()]
    measure(model.get_base_model(), BaseReference(), texts(3))
    assert [module.training for module in model.modules()] == modes
    assert any(modes)
    assert not any(getattr(module, "_disable_adapters", False) for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_that_overflows_is_named() -> None:
    model = with_lora(tiny("llama", dtype=torch.float32))
    with torch.no_grad():
        model.get_base_model().model.layers[0].mlp.down_proj.lora_B["default"].weight.fill_(float("nan"))
    with pytest.raises(ConfigError, match="not finite"):
        measure(model.get_base_model(), BaseReference(), texts(3))


def test_a_text_of_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match="two tokens"):
        measure(with_lora(tiny("llama")).get_base_model(), BaseReference(), [Text([5], ["other"])])


# ---- means ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6))
def test_bins_partition_the_positions(position: int) -> None:
    first, last = bin_range(bin_of(position))
    assert first <= position < last
    assert bin_range(bin_of(position) + 1)[0] == last


def test_positions_are_those_of_the_text() -> None:
    model = with_lora(tiny("llama"))
    length = 40
    text = Text(list(range(3, 3 + length)), ["question"] * length)
    values = by_dense_logits(model, [text])["question"]["base_to_tuned"]
    bins = measure(model.get_base_model(), BaseReference(), [text])["positions"]["data"]
    assert [(part["from"], part["to"], part["tokens"]) for part in bins] == [(0, 16, 16), (16, 32, 16), (32, 64, 7)]
    for part in bins:
        assert part["base_to_tuned"] == pytest.approx(float(np.mean(values[part["from"] : part["to"]])), rel=1e-6)


def test_ratio_mean_by_hand() -> None:
    """Texts of 2, 0 and 4 tokens with sums 2 and 8: mean 10/6; deviations 2 - 10/3 and 8 - 20/3, both 4/3."""
    mean, error = ratio_mean(np.array([2.0, 5.0, 8.0]), np.array([2.0, 0.0, 4.0]))
    assert mean == pytest.approx(10 / 6)
    assert error == pytest.approx(math.sqrt(2 * 2 * (4 / 3) ** 2) / 6)
    assert ratio_mean(np.array([3.0]), np.array([2.0])) == (1.5, None)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), texts_=st.integers(30, 60))
def test_the_standard_error_is_that_of_many_draws_of_texts(seed: int, texts_: int) -> None:
    draw = np.random.default_rng(seed)
    counts = draw.integers(5, 30, texts_).astype(float)
    sums = counts * draw.normal(1, 0.5, texts_)  # tokens of a text go together: the text is the unit
    _, error = ratio_mean(sums, counts)
    picks = draw.integers(0, texts_, (2000, texts_))
    spread = (sums[picks].sum(1) / counts[picks].sum(1)).std()
    assert error == pytest.approx(spread, rel=0.15)


# ---- memory --------------------------------------------------------------------------------------------------------

_CHILD = """
import sys, torch
from pathlib import Path
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM
from selfaug.reference.adapter import BaseReference
from selfaug.shift.measure import Text, measure

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(sys.argv[1]))

config = Qwen2Config(
    vocab_size=151936, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True,
)
model = get_peft_model(Qwen2ForCausalLM(config), LoraConfig(target_modules="all-linear", init_lora_weights=False))
draw = torch.Generator().manual_seed(0)
ids = torch.randint(151936, (4096,), generator=draw).tolist()
texts = [Text(ids, ["documents"] * 4096)]
measure(model.get_base_model(), BaseReference(), [Text(ids[:8], ["documents"] * 8)])  # what is loaded on first use
sys.argv[1] = "VmRSS:"
before = peak()
sys.argv[1] = "VmHWM:"
found = measure(model.get_base_model(), BaseReference(), texts)
print(found["regions"]["documents"]["tokens"], found["regions"]["documents"]["base_to_tuned"]["value"], peak() - before)
"""


@pytest.mark.nightly
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_4096_tokens_at_a_vocabulary_of_152k_take_less_than_one_and_a_half_gigabytes() -> None:
    """One matrix of dense float32 logits alone is 2.5 GB."""
    out = subprocess.run([sys.executable, "-c", _CHILD, "-"], capture_output=True, text=True, check=True).stdout
    tokens, value, extra = out.split()
    assert int(tokens) == 4095
    assert float(value) > 0
    assert int(tokens) * 151936 * 4 > 1.5e9
    assert int(extra) < 1.5e9, f"{int(extra) / 1e9:.2f} GB"
    print(f"{int(extra) / 1e9:.2f} GB")
