"""Is what FSDP and ZeRO cannot train refused by settings alone, with no process started and no weight loaded?"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from peft import LoraConfig

from selfaug import SelfAugConfig
from selfaug.cli.export import missing_weights
from selfaug.cli.launch import LaunchFlags
from selfaug.cli.sharding import sharding_asked
from selfaug.common.errors import ConfigError
from selfaug.training.sharding import Sharding, check_sharding
from tests.distributed.launching import configuration


def config(tmp_path: Path, **settings: Any) -> SelfAugConfig:
    return SelfAugConfig(str(tmp_path), report_to="none", bf16=False, **settings)


NOTHING = SimpleNamespace(fsdp=None, deepspeed=None)
HEAD = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
REFUSALS: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], str, str]] = {
    "FSDP 1": ("fsdp1", {}, {}, {}, "hides the adapter", "fsdp_version: 2"),
    "checkpointing of FSDP's own": ("fsdp2", {}, {}, {}, "no adapter to save", "--gradient_checkpointing"),
    "8 bits under FSDP2": ("fsdp2", {}, {}, {"eight_bit": True}, "FSDP2 cannot split", "load_in_4bit"),
    "tied head under FSDP2": ("fsdp2", {}, HEAD, {"tied": True}, "head and embedding share", "modules_to_save"),
    "initial head under ZeRO-3": (
        "zero3", {"reference": "initial"}, HEAD, {}, "as training began", "modules_to_save",
    ),
    "penalty on weights": (
        "zero2", {"method": "l2", "method_options": {"update_weight": 0.5}}, {}, {}, "penalises the trained", "DDP",
    ),
    "start from weights": ("fsdp2", {"method": "pissa"}, {}, {}, "whole pretrained weights apart", "DDP"),
    "scores of the base": ("zero3", {"method": "flow"}, {}, {}, "scores the data", "DDP"),
    "rows that the base writes": ("fsdp2", {"method": "magpie"}, {}, {}, "write before training", "--generation_url"),
    "texts that the base writes": (
        "zero2", {"align_data": "self:9"}, {}, {}, "align_data='self:9' lets", "--generation_url",
    ),
    "rate by the loss under DeepSpeed": ("zero1", {"method": "finch"}, {}, {}, "takes the step before", "FSDP2"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSALS))
def test_a_combination_is_refused_by_name(name: str, tmp_path: Path) -> None:
    kind, settings, adapter, facts, says, remedy = REFUSALS[name]
    sharding = Sharding(kind, own_checkpointing=name == "checkpointing of FSDP's own")
    args, peft_config = config(tmp_path, **settings), LoraConfig(**adapter)
    facts = {"tied": False, **facts}
    with pytest.raises(ConfigError, match=says) as refused:
        check_sharding(sharding, args, peft_config, **facts)
    assert remedy in refused.value.hint
    check_sharding(Sharding("ddp"), args, peft_config, **facts)
    check_sharding(Sharding(None), args, peft_config, **facts)


def test_a_served_base_may_write(tmp_path: Path) -> None:
    served = {"generation_url": "http://localhost:1/v1", "generation_model": "base"}
    check_sharding(Sharding("fsdp2"), config(tmp_path, method="magpie", **served), LoraConfig(), tied=False)


@pytest.mark.parametrize("kind", ["fsdp2", "zero2", "zero3"])
@pytest.mark.parametrize("reference", ["base", "initial"])
def test_an_adapter_is_not_refused(kind: str, reference: str, tmp_path: Path) -> None:
    check_sharding(Sharding(kind), config(tmp_path, reference=reference), LoraConfig(), tied=True)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2", "zero2", "zero3"])
def test_the_sharding_is_read_from_a_configuration_file(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text(yaml.safe_dump(configuration(kind)))
    parsed = LaunchFlags().check(["--config_file", str(file)])
    assert sharding_asked(parsed, NOTHING) == Sharding(kind)


def test_fsdps_own_checkpointing_is_read_too(tmp_path: Path) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text(yaml.safe_dump(configuration("fsdp2", fsdp_activation_checkpointing=True)))
    for words in (
        ["--config_file", str(file)],
        ["--use_fsdp", "--fsdp_version", "2", "--fsdp_activation_checkpointing", "true"],
    ):
        asked = sharding_asked(LaunchFlags().check(words), NOTHING)
        assert asked == Sharding("fsdp2", own_checkpointing=True)


@pytest.mark.parametrize("version", [1, 2])
def test_the_sharding_is_read_from_the_settings_of_the_training(version: int, tmp_path: Path) -> None:
    asks = {"fsdp_version": version, "fsdp_activation_checkpointing": True}
    asked = sharding_asked(LaunchFlags().check([]), config(tmp_path, fsdp=True, fsdp_config=asks))
    assert asked == Sharding(f"fsdp{version}", own_checkpointing=True)


def test_the_sharding_is_read_from_flags_and_from_deepspeeds_file(tmp_path: Path) -> None:
    def asked(*words: str, deepspeed: Any = None) -> str | None:
        training = SimpleNamespace(fsdp=None, deepspeed=deepspeed)
        return sharding_asked(LaunchFlags().check(list(words)), training).kind

    file = tmp_path / "zero.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    assert asked("--use_fsdp", "--fsdp_version", "2") == "fsdp2"
    assert asked("--use_fsdp") == "fsdp1"
    assert asked("--use_deepspeed", "--zero_stage", "1") == "zero1"
    assert asked("--use_deepspeed", "--deepspeed_config_file", str(file)) == "zero3"
    assert asked(deepspeed=str(file)) == "zero3"
    assert asked(deepspeed={"bf16": {"enabled": True}}) == "zero0"  # DeepSpeed's engine all the same
    file.write_text("{")
    with pytest.raises(ConfigError, match=r"zero\.json"):
        asked(deepspeed=str(file))


def test_an_export_without_its_weights_is_seen(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    assert missing_weights(tmp_path, None) == "it has no weights"
    file = tmp_path / "adapter_model.safetensors"
    save_file({"a": torch.ones(3, 4)}, file)
    assert missing_weights(tmp_path, 12) is None
    assert missing_weights(tmp_path, 13) == "it has 12 of 13 trained values"
    save_file({"a": torch.ones(3, 4), "b": torch.empty(0)}, file)
    assert missing_weights(tmp_path, None) == "b is empty"
    file.write_bytes(file.read_bytes()[:20])
    assert "cannot be read" in str(missing_weights(tmp_path, None))
