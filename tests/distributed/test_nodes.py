"""Do two nodes of two processes, each with folders of its own, train and resume what one node of four does?

Two agents of torchrun on this machine stand for two machines: each has its own working folder, output folder and cache.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from selfaug.run.checkpoint import torn_because
from tests.cli.conftest import records, save_model, write_rows

pytestmark = [pytest.mark.distributed, pytest.mark.nightly]

WORDS = [
    *("--per_device_train_batch_size", "1", "--save_steps", "2", "--learning_rate", "1e-3", "--lora_dropout", "0"),
    *("--use_cpu", "true", "--gradient_checkpointing", "false", "--dtype", "float32"),
]
# After a process's first step DDP orders the gradients of a bucket anew, and more than two ranks then add them up in
# another order; with the search for unused weights it keeps the first order.
ONE_ORDER = ["--ddp_find_unused_parameters", "true"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def train(base: Path, nodes: int, *words: str, folders: str = "{}/run") -> list[subprocess.CompletedProcess[str]]:
    """Start an agent for each node, four processes in all, and wait for them."""
    port, started = free_port(), []
    for node in range(nodes):
        own = base / f"node{node}"
        own.mkdir(parents=True, exist_ok=True)
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes", str(nodes), "--node_rank", str(node)),
            *("--nproc_per_node", str(4 // nodes), "--master_addr", "127.0.0.1", "--master_port", str(port)),
            *("-m", "selfaug", "train", "--model_name_or_path", str(base / "model")),
            *("--dataset_name", str(base / "rows.jsonl"), "--output_dir", folders.format(own), *WORDS, *words),
        ]
        environment = {**os.environ, "HF_DATASETS_CACHE": str(own / "cache"), "OMP_NUM_THREADS": "1"}
        started.append(
            subprocess.Popen(
                command, cwd=own, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    done = []
    for process in started:
        out, err = process.communicate(timeout=400)
        done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    return done


def make(base: Path) -> None:
    base.mkdir(exist_ok=True)
    save_model(base / "model")
    write_rows(base / "rows.jsonl", records(24))


def test_two_nodes_with_disks_of_their_own(tmp_path: Path) -> None:
    whole, split = tmp_path / "whole", tmp_path / "split"
    for base in (whole, split):
        make(base)
    (one,) = train(whole, 1, "--max_steps", "6")
    assert one.returncode == 0, one.stderr[-3000:]
    both = train(split, 2, "--max_steps", "6", *ONE_ORDER)
    assert [each.returncode for each in both] == [0, 0], both[1].stderr[-3000:]
    assert "is on a disk of each machine" in both[0].stderr
    runs = [split / f"node{node}" / "run" for node in (0, 1)]
    for node, run in enumerate(runs):
        for step in (2, 4, 6):
            checkpoint = run / "checkpoints" / f"checkpoint-{step}"
            assert torn_because(checkpoint) is None
            states = sorted(path.name for path in checkpoint.glob("rng_state_*"))
            assert states == [f"rng_state_{rank}.pth" for rank in (2 * node, 2 * node + 1)]
        assert list((split / f"node{node}" / "cache" / "selfaug").iterdir())  # each made its own rows
    assert [(run / "adapter").is_dir() for run in runs] == [True, False]
    assert [path.name for path in runs[1].iterdir()] == ["checkpoints"]
    expected = load_file(whole / "node0" / "run" / "adapter" / "adapter_model.safetensors")
    found = load_file(runs[0] / "adapter" / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    difference = max(float((found[name] - expected[name]).abs().max()) for name in found)
    print(f"one node and two: {difference:.1e}")
    assert difference < 2e-5
    assert max(float(weight.abs().max()) for name, weight in found.items() if "lora_B" in name) > 1e-3

    # Killed after step 4 on both nodes: the resumed run ends at the same weights, bit for bit.
    for run in runs:
        shutil.rmtree(run / "checkpoints" / "checkpoint-6")
    shutil.rmtree(runs[0] / "adapter")
    resumed = train(split, 2, "--max_steps", "6", "--resume_from_checkpoint", "true", *ONE_ORDER)
    assert [each.returncode for each in resumed] == [0, 0], resumed[0].stderr[-3000:]
    again = load_file(runs[0] / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(again[name], found[name]) for name in found)

    # The second node lost its last checkpoint: both end, and say what each found.
    shutil.rmtree(runs[1] / "checkpoints" / "checkpoint-6")
    refused = train(split, 2, "--max_steps", "6", "--resume_from_checkpoint", "true", *ONE_ORDER)
    assert all(each.returncode for each in refused)
    said = "".join(each.stderr for each in refused)
    assert "process 0: checkpoint-6" in said
    assert "process 2: checkpoint-4" in said


def test_nodes_that_share_a_disk_do_not_save_twice(tmp_path: Path) -> None:
    make(tmp_path / "shared")
    shared = str(tmp_path / "shared" / "run")
    refused = train(tmp_path / "shared", 2, "--max_steps", "2", "--save_on_each_node", "true", folders=shared)
    assert all(each.returncode for each in refused)
    assert "write the same files at once" in "".join(each.stderr for each in refused)
    both = train(tmp_path / "shared", 2, "--max_steps", "2", folders=shared)
    assert [each.returncode for each in both] == [0, 0], both[0].stderr[-3000:]
    checkpoint = tmp_path / "shared" / "run" / "checkpoints" / "checkpoint-2"
    assert torn_because(checkpoint) is None
    assert len(list(checkpoint.glob("rng_state_*"))) == 4
