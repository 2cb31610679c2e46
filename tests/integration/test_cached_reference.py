"""Does training with the base's hidden states from disk equal training with a reference pass, and when is it refused?

The equal is the online run of the same trainer, which `test_step_oracle.py` and `test_references.py` hold to the
oracle.
"""

from __future__ import annotations

import shutil
from collections import namedtuple
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import nn

from selfaug.common.errors import ConfigError
from selfaug.reference import cached
from selfaug.reference.adapter import BaseReference
from selfaug.reference.cache_files import CacheIndex
from selfaug.training.config import SelfAugConfig
from selfaug.training.trainer import SelfAugTrainer
from tests.integration.steps import SEQUENCES, Ran, run
from tests.models import lora_config, tiny, tiny_tokenizer

SEEN = SEQUENCES["single-turn"] + SEQUENCES["multi-turn"]
LAYOUTS: dict[str, dict[str, Any]] = {
    "padding": {"per_device_train_batch_size": 2},
    "packing": {"packing": True, "max_length": 48, "per_device_train_batch_size": 1},
    "padding-free": {"padding_free": True, "per_device_train_batch_size": 3},
}
# One epoch of single steps that move the adapter.
EPOCH: dict[str, Any] = {
    **{"dtype": torch.float32, "max_steps": -1, "num_train_epochs": 1, "gradient_accumulation_steps": 1},
    **{"learning_rate": 1e-2, "perturb": lambda model: None},
}


def logged(ran: Ran, name: str) -> list[float]:
    assert ran.trainer is not None
    return [entry[name] for entry in ran.trainer.state.log_history if name in entry]


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "SHARD_BYTES", 20 * 32 * 4)  # twenty float32 states of the tiny models


@pytest.mark.nightly
@pytest.mark.parametrize("fractions", [{}, {"align_fraction": 0.5, "align_token_fraction": 0.5}], ids=["all", "drawn"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_epoch_equals_the_online_one(layout: str, fractions: dict[str, float], tmp_path: Path) -> None:
    settings = {**EPOCH, **LAYOUTS[layout], **fractions}
    online = run(SEEN, tmp_path / "online", **settings)
    cache = str(tmp_path / "cache")
    first = run(SEEN, tmp_path / "first", reference_cache=cache, **settings)
    written = stamps(tmp_path / "cache")
    second = run(SEEN, tmp_path / "second", reference_cache=cache, **settings)
    assert stamps(tmp_path / "cache") == written
    assert sum(name.endswith(".safetensors") for name in written) > 3
    assert len(online.losses) >= 3
    assert max(logged(online, "alignment")) > 1e-3, "nothing was aligned worth comparing"
    assert sum(logged(online, "reference_tokens")) > 0
    for ran in (first, second):
        assert ran.losses == pytest.approx(online.losses, rel=1e-6)
        assert sum(logged(ran, "reference_tokens")) == 0
        assert logged(ran, "aligned_tokens") == logged(online, "aligned_tokens")


def test_layouts_epochs_and_seeds_share_a_cache_and_a_step_has_no_reference_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = str(tmp_path / "cache")
    run(SEEN, tmp_path / "first", reference_cache=cache, **{**EPOCH, **LAYOUTS["packing"]})
    written = stamps(tmp_path / "cache")
    settings = {**EPOCH, **LAYOUTS["padding"], "num_train_epochs": 2, "seed": 9, "alpha": 0.7}
    online = run(SEEN, tmp_path / "online", **settings)

    def no_pass(trainer: SelfAugTrainer) -> None:
        trainer.write_reference_cache()
        trainer.args.check_reference = False
        monkeypatch.setattr(BaseReference, "serving", lambda self, model: pytest.fail("a reference pass"))

    again = run(SEEN, tmp_path / "again", reference_cache=cache, change=no_pass, **settings)
    assert again.losses == pytest.approx(online.losses, rel=1e-6)
    assert stamps(tmp_path / "cache") == written


def test_long_prompts_are_written_in_slices(tmp_path: Path) -> None:
    settings = {**EPOCH, **LAYOUTS["padding"]}
    online = run(SEEN, tmp_path / "online", reference_slice=0, **settings)
    ran = run(SEEN, tmp_path / "run", reference_cache=str(tmp_path / "cache"), reference_slice=5, **settings)
    assert ran.trainer is not None
    assert ran.trainer.driver.layout.slice == 5
    assert ran.losses == pytest.approx(online.losses, rel=1e-6)


def test_bfloat16_takes_half_the_room_and_stays_near(tmp_path: Path) -> None:
    settings = {**EPOCH, **LAYOUTS["padding"]}
    online = run(SEEN, tmp_path / "online", **settings)
    halved = run(SEEN, tmp_path / "h", reference_cache=str(tmp_path / "half"), cache_dtype="bfloat16", **settings)
    index = CacheIndex.read(tmp_path / "half")
    assert index is not None
    assert index.bytes_of(index.shards) == 2 * 32 * sum(shard.rows for shard in index.shards)
    assert halved.losses != pytest.approx(online.losses, rel=1e-6)  # 8 bits of each number
    assert halved.losses == pytest.approx(online.losses, rel=0.02)
    with pytest.raises(ConfigError, match="cache_dtype asks for float32"):
        run(SEEN, tmp_path / "f", reference_cache=str(tmp_path / "half"), cache_dtype="float32", **settings)


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_full_fine_tuning_with_a_frozen_head_needs_no_second_model(
    arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen2 ties its head to the embedding, which stays frozen too."""
    tiny(arch, dtype=torch.float32).save_pretrained(tmp_path / "base")
    settings = {**EPOCH, **LAYOUTS["padding"], "freeze_head": True, "learning_rate": 1e-3}

    def start() -> nn.Module:
        return tiny(arch, dtype=torch.float32).train()

    online = run(SEEN, tmp_path / "online", model=start(), reference=str(tmp_path / "base"), **settings)
    monkeypatch.setattr("selfaug.reference.frozen.FrozenReference.__init__", lambda *given: pytest.fail("loaded"))
    ran = run(SEEN, tmp_path / "cached", model=start(), reference_cache=str(tmp_path / "cache"), **settings)
    assert ran.losses == pytest.approx(online.losses, rel=1e-6)
    assert max(logged(online, "alignment")) > 1e-3
    assert ran.trainer is not None
    head = ran.trainer.model.get_output_embeddings().weight
    assert torch.equal(head, tiny(arch, dtype=torch.float32).get_output_embeddings().weight)
    assert ran.trainer.evaluate(rows(SEEN[:2]))["eval_alignment"] > 1e-3  # the trained model is not its own reference


def rows(chosen: Any) -> Dataset:
    return Dataset.from_list([{"input_ids": list(ids), "labels": list(labels)} for ids, labels in chosen])


def trainer(cache: Path, chosen: Any = SEEN, *, model: Any = None, tokenizer: Any = None, **settings: Any) -> Any:
    config = {"bf16": False, "use_cpu": True, "report_to": "none", "reference_cache": str(cache), **settings}
    model = tiny("llama", dtype=torch.float32) if model is None else model
    return SelfAugTrainer(
        model,
        SelfAugConfig(str(cache.parent / "run"), max_length=256, **config),
        train_dataset=rows(chosen),
        processing_class=tokenizer or tiny_tokenizer(),
        peft_config=lora_config("llama"),
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cached, "SHARD_BYTES", 20 * 32 * 4)
        trainer(folder).write_reference_cache()
    return folder


def one_weight() -> Any:
    model = tiny("llama", dtype=torch.float32)
    with torch.no_grad():
        weight = model.model.layers[1].mlp.up_proj.weight
        weight[17, 5] = torch.nextafter(weight[17, 5], torch.tensor(9.0))
    return model


def one_setting() -> Any:
    model = tiny("llama", dtype=torch.float32)
    model.config.rms_norm_eps = 1e-5
    return model


def other_tokenizer() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["w3000"])
    return tokenizer


def other_template() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages }}"
    return tokenizer


def one_token() -> Any:
    (ids, labels), *rest = SEEN
    return [([*ids[:3], ids[3] + 1, *ids[4:]], labels), *rest]


def one_label() -> Any:
    (ids, labels), *rest = SEEN
    return [(ids, [*ids[:2], *labels[2:]]), *rest]


CHANGED: dict[str, tuple[str, dict[str, Any]]] = {
    "weight": ("another weights", {"model": one_weight}),
    "number format": ("another weights", {"model": lambda: tiny("llama", dtype=torch.bfloat16)}),
    "configuration": ("another config", {"model": one_setting}),
    "tokenizer": ("another tokenizer", {"tokenizer": other_tokenizer}),
    "template": ("another chat_template", {"tokenizer": other_template}),
    "boundary": ("another align_boundary", {"align_boundary": True}),
    "precision": ("another precision", {"bf16": True}),
    "token of a row": ("1 of 10 sequences .* the first is row 1 of the train data set", {"chosen": one_token}),
    "label of a row": ("1 of 10 sequences .* the first is row 1 of the train data set", {"chosen": one_label}),
}


@pytest.mark.parametrize("changed", CHANGED)
def test_what_has_changed_is_refused_by_name(changed: str, whole: Path) -> None:
    message, how = CHANGED[changed]
    given = {name: value() if callable(value) else value for name, value in how.items()}
    before = stamps(whole)
    with pytest.raises(ConfigError, match=message) as refused:
        trainer(whole, **given)
    assert "reference_cache" in str(refused.value)
    assert stamps(whole) == before


def test_a_part_of_the_data_in_another_order_is_served(whole: Path) -> None:
    assert trainer(whole, SEEN[5:2:-1]).write_reference_cache() == 0


def test_files_that_hold_something_else_are_seen(whole: Path, tmp_path: Path) -> None:
    """A shard with a right seal and wrong numbers: what another version of a library would compute."""
    other = shutil.copytree(whole, tmp_path / "cache")
    index = CacheIndex.read(other)
    assert index is not None
    for shard in index.shards:
        shard.write(other, load_file(shard.path(other))["hidden"].flip(0))
    with pytest.raises(ConfigError, match="does not hold what the model computes"):
        trainer(other).write_reference_cache()


def test_torn_and_damaged_shards_are_written_anew(whole: Path, tmp_path: Path) -> None:
    other = shutil.copytree(whole, tmp_path / "cache")
    paths = sorted(other.glob("*.safetensors"))
    paths[0].write_bytes(paths[0].read_bytes()[:-7])
    paths[1].with_suffix(".json").unlink()
    assert trainer(other).write_reference_cache() == 2
    damaged = bytearray(paths[2].read_bytes())
    damaged[-5] ^= 1
    paths[2].write_bytes(damaged)
    assert trainer(other).write_reference_cache() == 0  # its size is right
    assert trainer(other).write_reference_cache(thorough=True) == 1
    for path in paths:
        assert torch.equal(load_file(path)["hidden"], load_file(whole / path.name)["hidden"])
    # An unfinished cache is finished by its own data alone.
    paths[0].unlink()
    with pytest.raises(ConfigError, match="missing sequences are not in this run's data"):
        trainer(other, SEEN[4:])


def test_room_is_announced_and_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12 - 100, 100))
    with pytest.raises(ConfigError, match=r"its disk has 0\.00 MB free"):
        trainer(tmp_path / "cache")
    count = sum(sum(a == b == -100 for a, b in pairwise(ls)) for _, ls in SEEN)
    assert f"{count} aligned tokens of {len(SEEN)} sequences, 32 numbers each in float32" in capsys.readouterr().err
    assert not list((tmp_path / "cache").iterdir())


def rope(kind: str) -> Any:
    model = tiny("llama", dtype=torch.float32)
    model.config.rope_parameters = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}
    return model


def test_what_no_file_can_serve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="change with the rest of the batch"):
        trainer(tmp_path / "cache", model=rope("dynamic"))
    with pytest.raises(ConfigError, match="reference='initial' cannot come out of a reference_cache"):
        trainer(tmp_path / "cache", reference="initial")
    with pytest.raises(ConfigError, match="this run trains the head"):
        run(SEEN, tmp_path / "run", model=tiny("llama").train(), reference_cache=str(tmp_path / "cache"))
    config = lora_config("llama", targets=["q_proj"])
    config.modules_to_save = ["lm_head"]
    with pytest.raises(ConfigError, match="this run trains the head"):
        run(SEEN, tmp_path / "run", peft_config=config, reference_cache=str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_a_sequence_that_was_never_cached_is_named(whole: Path) -> None:
    with pytest.raises(ConfigError, match="a sequence is not in the reference cache"):
        trainer(whole).evaluate(rows(one_token()[:1]))


def test_reading_maps_the_file_and_takes_no_copy_of_it(tmp_path: Path) -> None:
    """`safe_open` gives a view of the mapped file: pages that are not drawn are never read."""
    file = tmp_path / "one.safetensors"
    save_file({"hidden": torch.zeros(1000, 64)}, file)
    from safetensors import safe_open

    with safe_open(file, framework="pt") as handle:
        tensor = handle.get_tensor("hidden")
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not list a process's mappings")
    at = tensor.data_ptr()
    lines = [line.split() for line in maps.read_text().splitlines() if str(file) in line]
    spans = [[int(end, 16) for end in line[0].split("-")] for line in lines]
    assert any(low <= at < high for low, high in spans)
