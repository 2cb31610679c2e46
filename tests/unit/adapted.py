"""Which small adapted models do the tests of references look at, and how do they compare weights?"""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from selfaug.model.parts import body_of
from tests.models import perturb_adapter, tiny

INPUT_IDS = torch.arange(5, 17)[None]


def hidden(model: nn.Module) -> Tensor:
    return body_of(model)(input_ids=INPUT_IDS, use_cache=False).last_hidden_state.detach()


def adapted(
    arch: str = "llama", perturb: bool = False, dtype: torch.dtype = torch.float64, **settings: Any
) -> tuple[nn.Module, nn.Module]:
    """The causal LM inside the wrapper, and the wrapper."""
    config = LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        wrapped = get_peft_model(tiny(arch, dtype=dtype), config, autocast_adapter_dtype=False)
    if perturb:
        perturb_adapter(wrapped)
    return wrapped.get_base_model(), wrapped.eval()


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
