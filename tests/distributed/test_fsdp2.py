"""Does a model sharded over two ranks (FSDP2) train as it does whole?

Real processes over gloo. With an eighth of the sequences drawn, ranks with nothing to align must still join the
reference pass, or the others wait for ever; and with an adapter switched by PEFT's own context the second step would
train nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

SCRIPT = Path(__file__).with_name("sharded.py")
CASES: dict[str, dict[str, Any]] = {
    "an eighth": {"align_fraction": 0.125},
    "initial reference": {"align_fraction": 0.5, "reference": "initial", "padding_free": True},
}
FSDP2 = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "FSDP",
    "mixed_precision": "no",
    "num_machines": 1,
    "num_processes": 2,
    "machine_rank": 0,
    "use_cpu": True,
    "fsdp_config": {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_reshard_after_forward": True,
        "fsdp_state_dict_type": "FULL_STATE_DICT",
        "fsdp_cpu_ram_efficient_loading": False,
    },
}


def train(folder: Path, settings: dict[str, Any], launcher: list[str]) -> tuple[list[dict[str, float]], dict[str, Any]]:
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps(settings))
    command = [sys.executable, *launcher, str(SCRIPT), str(folder / "settings.json"), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    return json.loads((folder / "losses.json").read_text()), adapter


@pytest.mark.nightly
@pytest.mark.parametrize("name", list(CASES))
def test_a_sharded_run_equals_a_whole_one(name: str, tmp_path: Path) -> None:
    (tmp_path / "fsdp2.yaml").write_text(yaml.safe_dump(FSDP2))
    sharding = ["-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "fsdp2.yaml")]
    whole, whole_adapter = train(tmp_path / "whole", CASES[name], [])
    sharded, sharded_adapter = train(tmp_path / "sharded", CASES[name], sharding)

    assert len(whole) == len(sharded) == 5
    assert any(step["aligned_tokens"] > 0 and step["alignment"] > 1e-4 for step in whole), "nothing was aligned"
    for one, two in zip(whole, sharded, strict=True):
        for key in ("loss", "nll", "alignment", "aligned_tokens", "reference_tokens", "num_tokens"):
            assert two.get(key, 0.0) == pytest.approx(one.get(key, 0.0), rel=1e-6, abs=1e-9), (key, one, two)
    moved = 0.0
    for key, weight in whole_adapter.items():
        torch.testing.assert_close(sharded_adapter[key], weight, rtol=1e-5, atol=1e-7)
        moved = max(moved, float(weight.abs().max())) if "lora_B" in key else moved
    assert moved > 1e-3, "the adapter did not move"
