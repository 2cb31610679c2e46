"""Are rows, devices and remedies counted as they are by hand?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from datasets import Dataset

from selfaug.cli.dry_run import Counts, Devices, count_rows, devices_of, micro_batch_of, remedies
from selfaug.training.estimate import MicroBatch, ModelSizes, Setup, estimate_memory

# Prompt 3 and response 2; a conversation with two answers; a row that is all prompt.
LABELS = [[-100, -100, -100, 7, 8], [-100, -100, 5, -100, -100, -100, 6], [-100, -100]]


def settings(**training: Any) -> Any:
    chosen = {"packing": False, "padding_free": False, "align_token_fraction": 1.0, "model_init_kwargs": None}
    model = SimpleNamespace(attn_implementation=None)
    return SimpleNamespace(training=SimpleNamespace(**(chosen | training)), model=model)


def test_tokens_responses_and_aligned_positions_by_hand() -> None:
    table = Dataset.from_dict({"labels": LABELS})
    counts = count_rows(table, boundary=False)
    assert counts.tokens.tolist() == [5, 7, 2]
    assert counts.responses.tolist() == [2, 2, 0]
    assert counts.aligned.tolist() == [2, 3, 1]
    # With boundaries each response has one more: the position before it.
    assert count_rows(table, boundary=True).aligned.tolist() == [3, 5, 1]


def test_the_largest_micro_batch_has_the_longest_rows() -> None:
    counts = Counts(*(np.array(each) for each in ([5, 7, 2], [2, 2, 0], [2, 3, 1])))
    assert micro_batch_of(counts, settings(), 2) == MicroBatch(2, 7, 4, 5, 8, masked=True)
    assert micro_batch_of(counts, settings(align_token_fraction=0.5), 1) == MicroBatch(1, 7, 2, 1, 4, masked=False)
    equal = Counts(*(np.array(each) for each in ([7, 7], [2, 2], [4, 4])))
    assert not micro_batch_of(equal, settings(), 2).masked
    flash = settings(model_init_kwargs={"attn_implementation": "flash_attention_2"})
    assert not micro_batch_of(counts, flash, 2).masked
    packed = micro_batch_of(counts, settings(packing=True, max_length=14), 2)
    assert (packed.rows, packed.tokens, packed.document, packed.masked) == (1, 28, 7, True)
    assert packed.responses == 2 * 4  # twice as many tokens as all rows have


ZERO: dict[str, Any] = {"distributed_type": "DEEPSPEED", "num_processes": 4}


@pytest.mark.parametrize(
    ("file", "words", "expected"),
    [
        ({"distributed_type": "FSDP", "num_processes": 8}, (), Devices(8, "all")),
        ({**ZERO, "deepspeed_config": {"zero_stage": 2}}, (), Devices(4, "optimizer")),
        ({**ZERO, "deepspeed_config": {"zero_stage": 3}}, (), Devices(4, "all")),
        ({"distributed_type": "MULTI_GPU", "num_processes": 4}, ("--num_processes", "2"), Devices(2, "none")),
        (None, ("--num_processes", "3"), Devices(3, "none")),
        (None, (), Devices(1, "none")),
    ],
)
def test_devices_and_sharding_come_from_accelerates_settings(
    file: dict[str, Any] | None, words: tuple[str, ...], expected: Devices, tmp_path: Path
) -> None:
    given = list(words)
    if file is not None:
        (tmp_path / "a.yaml").write_text(yaml.safe_dump(file))
        given += ["--config_file", str(tmp_path / "a.yaml")]
    assert devices_of(given, SimpleNamespace(use_cpu=True, fsdp=None, deepspeed=None)) == expected


def test_each_remedy_fits_and_leaving_one_out_would_not() -> None:
    model = ModelSizes(32, 4096, 4096, 1024, 14336, 128256, tied=False)
    setup = Setup(16, linear_bytes=4, compute_bytes=2)
    batches = {n: MicroBatch(n, 2048, n * 100, n * 1900, n * 1900, masked=True) for n in (8, 4, 2, 1)}
    room = 80 * 2**30
    assert estimate_memory(model, setup, batches[8]).total > room
    found = remedies(model, setup, batches, room)
    assert found
    assert all(needed <= room for _, needed in found)
    light = estimate_memory(model, replace(setup, checkpointing=True), batches[8]).total
    assert (("--gradient_checkpointing true", light) in found) == (light <= room)
    assert sum(words.startswith("--accelerate_config") for words, _ in found) <= 1
    assert any("--load_in_4bit" in words for words, _ in found)
    assert remedies(model, setup, batches, 2**20) == []
