"""Lets accelerate shard with FSDP2 over CPU processes.

accelerate 1.15 reads its FSDP settings on accelerators only; with CPU processes it falls back to DDP without a word. So
who uses this must also assert that the trainer is sharded: `assert_sharded`.
"""

from __future__ import annotations

import functools
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


def shard_on_cpu() -> None:
    """Make every `AcceleratorState` of this process that is given FSDP settings on several CPU processes keep them."""
    original = AcceleratorState.__init__

    @functools.wraps(original)
    def init(state: Any, *args: Any, **kwargs: Any) -> None:
        original(state, *args, **kwargs)
        plugin = kwargs.get("fsdp_plugin")
        if plugin is None or PartialState().distributed_type != DistributedType.MULTI_CPU:
            return
        for shared in (AcceleratorState._shared_state, PartialState._shared_state):
            shared["distributed_type"] = DistributedType.FSDP
        AcceleratorState._shared_state["fsdp_plugin"] = plugin

    AcceleratorState.__init__ = init


def assert_sharded(trainer: Any, kind: str) -> None:
    """The trainer, once it has trained, is sharded as ``kind`` says, and not merely told to be."""
    assert trainer.accelerator.num_processes > 1
    _assert_split(trainer.model, kind)
    if trainer.args.reference not in ("base", "initial"):
        with trainer.reference.serving(trainer.base_model) as frozen:
            assert frozen is not trainer.base_model
            _assert_split(frozen, kind)  # it is as the last pass left it
    if kind == "fsdp2":
        assert trainer.is_fsdp_enabled
    elif kind in ("zero2", "zero3"):
        assert trainer.is_deepspeed_enabled
        assert trainer.deepspeed.zero_optimization_stage() == int(kind[-1])
    else:
        assert trainer.accelerator.distributed_type in (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def _assert_split(model: Any, kind: str) -> None:
    from torch.distributed.tensor import DTensor

    if kind == "fsdp2":
        weights = [p for p in model.parameters() if p.is_floating_point()]
        assert all(isinstance(p, DTensor) for p in weights), "a weight is not a DTensor"
        assert any(p.to_local().numel() < p.numel() for p in weights), "every rank holds everything"
        return
    split = [p for p in model.parameters() if hasattr(p, "ds_tensor")]
    assert bool(split) == (kind == "zero3")
    assert all(p.ds_tensor.numel() < p.ds_numel for p in split if p.ds_numel > 1)
