"""Are a weight's whole value, its part on a rank and their exchange what they say, for plain and for split weights?

The split weight is a real DTensor, over the one rank of this process; more ranks are in tests/distributed.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn

from selfaug.model.parts import body_of
from selfaug.model.sharding import assign, exchange, held, is_split, plain_name, trained, whole, whole_shape
from selfaug.reference.frozen import FrozenReference
from tests.models import tiny

VALUES = torch.arange(12.0).reshape(4, 3)


@pytest.fixture(params=["plain", "split"])
def weight(request: pytest.FixtureRequest) -> Iterator[nn.Parameter]:
    if request.param == "plain":
        yield nn.Parameter(VALUES.clone())
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield nn.Parameter(distribute_tensor(VALUES.clone(), init_device_mesh("cpu", (1,)), [Shard(0)]))
    finally:
        dist.destroy_process_group()


def test_a_weight_and_its_parts(weight: nn.Parameter) -> None:
    assert is_split(weight) == hasattr(weight, "full_tensor")
    assert whole_shape(weight) == (4, 3)
    assert torch.equal(whole(weight), VALUES)
    assert not whole(weight).requires_grad
    held(weight).add_(1.0)
    assert torch.equal(whole(weight), VALUES + 1), "the part is not the weight's own memory"


def test_an_exchange_and_back_changes_nothing(weight: nn.Parameter) -> None:
    part = held(weight).clone().mul_(-0.1)
    other = part.clone()
    exchange(weight, part)
    assert torch.equal(whole(weight), VALUES * -0.1)
    assert torch.equal(part, VALUES)
    exchange(weight, part)
    assert torch.equal(whole(weight), VALUES)
    assert torch.equal(part, other)


def test_a_whole_value_is_assigned(weight: nn.Parameter) -> None:
    assign(weight, VALUES.flip(0))
    assert torch.equal(whole(weight), VALUES.flip(0))


def test_a_frozen_copy_is_in_parts_again_after_a_pass() -> None:
    """FSDP2 gives up its outermost weights after a backward pass alone, which a frozen model never has."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    frozen = tiny("llama")
    reference, body = FrozenReference("path", tiny("llama"), loaded=frozen), body_of(frozen)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for module in (*body.layers, body):
            fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
        for _ in range(2):
            with reference.serving(tiny("llama")) as served:
                body_of(served)(torch.arange(8)[None])
                assert not isinstance(body.embed_tokens.weight, DTensor), "nothing was gathered"
            assert all(isinstance(p, DTensor) for p in body.parameters())
    finally:
        dist.destroy_process_group()


def test_names_are_those_without_fsdps_wrapper() -> None:
    model = nn.ModuleDict({"_checkpoint_wrapped_module": nn.Linear(2, 2, bias=False)})
    assert [name for name, _ in trained(model)] == ["weight"]
    assert plain_name("a._checkpoint_wrapped_module.b") == "a.b"
