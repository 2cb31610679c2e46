"""Starts a script in two processes that are sharded as asked, or in one, and compares what they trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from tests.distributed.cells import Cell

SCRIPT = Path(__file__).with_name("cells.py")
_COMMON: dict[str, Any] = {
    "compute_environment": "LOCAL_MACHINE",
    "mixed_precision": "no",
    "num_machines": 1,
    "num_processes": 2,
    "machine_rank": 0,
}
_FSDP: dict[str, Any] = {
    "fsdp_version": 2,
    "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "fsdp_reshard_after_forward": True,
    "fsdp_state_dict_type": "FULL_STATE_DICT",
    "fsdp_cpu_ram_efficient_loading": False,
}


def configuration(kind: str, **changes: Any) -> dict[str, Any]:
    """An accelerate configuration for two CPU processes.

    Args:
        kind: ``ddp``, ``fsdp2``, ``zero2`` or ``zero3``.
        changes: Of ``fsdp_config`` or ``deepspeed_config``.
    """
    if kind == "ddp":
        return {**_COMMON, "distributed_type": "MULTI_CPU", "use_cpu": True}
    if kind == "fsdp2":
        return {**_COMMON, "distributed_type": "FSDP", "use_cpu": True, "fsdp_config": {**_FSDP, **changes}}
    zero = {
        "zero_stage": int(kind[-1]),
        "gradient_accumulation_steps": 2,
        "offload_optimizer_device": "none",
        "offload_param_device": "none",
        "zero3_init_flag": kind == "zero3",
        "zero3_save_16bit_model": True,
        **changes,
    }
    return {**_COMMON, "distributed_type": "DEEPSPEED", "use_cpu": False, "deepspeed_config": zero}


def environment() -> dict[str, str]:
    """The environment of a training on CPUs, with one thread a process."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "TOKENIZERS_PARALLELISM": "false",
    }


def launcher(kind: str, folder: Path, **changes: Any) -> list[str]:
    """The words before a script's; none for ``whole``, which is one process."""
    if kind == "whole":
        return [sys.executable]
    if kind == "ddp":
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{kind}.yaml").write_text(yaml.safe_dump(configuration(kind, **changes)))
    words = ["--config_file", str(folder / f"{kind}.yaml"), "--main_process_port", "0"]
    return [sys.executable, "-m", "accelerate.commands.launch", *words]


def run_cells(kind: str, cells: Sequence[Cell], model: Path, folder: Path, **changes: Any) -> dict[str, dict[str, Any]]:
    """Train cells in one launch; the result of each by its name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cells.json").write_text(json.dumps([vars(cell) for cell in cells]))
    words = [*launcher(kind, folder, **changes), str(SCRIPT), kind, str(folder / "cells.json"), str(model), str(folder)]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300 * (1 + len(cells)))
    (folder / "stderr.txt").write_text(done.stderr)
    found = {}
    for cell in cells:
        file = folder / cell.name / "result.json"
        tail = done.stderr[-3000:]
        found[cell.name] = json.loads(file.read_text()) if file.is_file() else {"failed": "no result", "trace": tail}
    return found


def weights(folder: Path) -> dict[str, Any]:
    """The exported weights of a cell."""
    return {k: v for file in sorted((folder / "export").glob("*.safetensors")) for k, v in load_file(file).items()}


def largest_difference(one: Path, other: Path) -> float:
    """The largest difference of a weight between two exports of the same tensors."""
    mine, theirs = weights(one), weights(other)
    assert mine, f"{one} has no weights"
    # A gathered model writes a head that is its embedding once more; reading it gives the same model.
    assert theirs.keys() <= mine.keys() <= {*theirs, "lm_head.weight"}
    mine = {name: mine[name] for name in theirs}
    return max(float((mine[name].double() - theirs[name].double()).abs().max()) for name in mine)
