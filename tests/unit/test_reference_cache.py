"""Does the key of a reference cache see every weight, and only what changes the hidden states?"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfaug.planning.reference_batch import sequence_key
from selfaug.reference.cache_files import CacheIndex, CacheKey
from selfaug.reference.cache_key import base_weights, cache_key, checksum
from tests.models import lora_config, tiny, tiny_tokenizer, with_lora


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(0, 10_000),
    st.integers(1, 2**16 - 1),
    st.sampled_from([torch.bfloat16, torch.float32, torch.float64]),
)
def test_one_changed_element_changes_the_checksum(size: int, at: int, flip: int, dtype: torch.dtype) -> None:
    weight = torch.randn(size, 3, generator=torch.Generator().manual_seed(size)).to(dtype)
    other = weight.clone()
    bits = other.reshape(-1).view({2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize])
    bits[at % bits.numel()] ^= flip - 2**16 if flip >= 2**15 else flip
    assert checksum({"w": other}) != checksum({"w": weight})
    assert checksum({"w": weight.clone()}) == checksum({"w": weight})


def test_places_names_shapes_and_formats_change_the_checksum() -> None:
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    same = checksum({"w": weight})
    assert checksum({"w": weight.t().contiguous()}) != same
    assert checksum({"w": weight.reshape(1, 4)}) != same
    assert checksum({"v": weight}) != same
    assert checksum({"w": torch.zeros(4)}) != checksum({"w": torch.zeros(4, dtype=torch.bfloat16)})


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("arch", ["llama", "qwen2", "mixtral"])
def test_an_adapter_changes_nothing_of_the_base(arch: str, saved: bool) -> None:
    from peft import get_peft_model

    plain = {name: weight.clone() for name, weight in base_weights(tiny(arch)).items()}
    assert plain.keys() == dict(tiny(arch).named_parameters()).keys()
    config = lora_config(arch)
    config.modules_to_save = ["embed_tokens"] if saved and arch == "llama" else None
    adapted = get_peft_model(tiny(arch), config).get_base_model() if saved else with_lora(tiny(arch)).get_base_model()
    found = base_weights(adapted)
    assert found.keys() == plain.keys()
    assert checksum(found) == checksum(plain)


def test_notes_in_the_configuration_do_not_count_and_settings_do() -> None:
    def key(**changes: object) -> CacheKey:
        model = tiny("llama")
        for name, value in changes.items():
            setattr(model.config, name, value)
        return cache_key(model, tiny_tokenizer(), align_boundary=False, precision="no")

    assert key(use_cache=False, pad_token_id=5, _name_or_path="elsewhere") == key()
    assert key(rms_norm_eps=1e-4) != key()


def test_a_sequence_is_known_by_its_tokens_and_aligned_positions() -> None:
    tokens = torch.arange(9)
    key = sequence_key(tokens, torch.arange(4))
    assert sequence_key(tokens.to(torch.int32), torch.arange(4)) == key
    assert sequence_key(tokens, torch.arange(5)) != key
    assert sequence_key(tokens[:-1], torch.arange(4)) != key
    # The border between the two parts is part of it.
    assert sequence_key(torch.tensor([1, 2]), torch.tensor([3])) != sequence_key(
        torch.tensor([1]), torch.tensor([2, 3])
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), max_size=20), st.integers(1, 60))
def test_shards_hold_every_sequence_once_in_order_and_are_bounded(counts: list[int], room: int) -> None:
    sequences = [(f"{i}", count) for i, count in enumerate(counts)]
    key = CacheKey("t", None, "w", "c", False, "no")
    index = CacheIndex.plan(key, sequences, hidden=3, dtype="bfloat16", shard_bytes=room * 6, versions={})
    assert [entry for shard in index.shards for entry in shard.sequences] == sequences
    for shard in index.shards:
        assert shard.rows <= room or len(shard.sequences) == 1
    assert index.bytes_of(index.shards) == sum(counts) * 6
