"""Tests of `selfaug.prompt_kl`: against dense logits and autograd, and what it loads."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

import selfaug

B, T, H, V = 3, 7, 8, 31


def tensors() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, base = (torch.randn(B, T, H, dtype=torch.float64, generator=generator) for _ in range(2))
    weight = torch.randn(V, H, dtype=torch.float64, generator=generator)
    return hidden, base, weight, torch.rand(B, T, generator=generator) < 0.5


def dense(hidden: Tensor, base: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    tuned, target = (F.linear(h[mask], weight).log_softmax(-1) for h in (hidden, base))
    return F.kl_div(tuned, target, reduction="sum", log_target=True) / mask.sum()


def test_value_and_gradients_are_those_of_dense_logits() -> None:
    found, expected = [], []
    for function, into in ((selfaug.prompt_kl, found), (dense, expected)):
        hidden, base, weight, mask = tensors()
        assert 0 < mask.sum() < mask.numel()
        hidden.requires_grad_()
        weight.requires_grad_()
        loss = (
            function(hidden, base, weight, mask)
            if function is dense
            else function(hidden, base, weight, mask, base_head_weight_VH=weight.detach())
        )
        if function is dense:
            tuned = F.linear(hidden[mask], weight).log_softmax(-1)
            target = F.linear(base[mask], weight.detach()).log_softmax(-1)
            loss = F.kl_div(tuned, target, reduction="sum", log_target=True) / mask.sum()
        loss.backward()
        into += [loss.detach(), hidden.grad, weight.grad]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_equal_models_give_exactly_0_and_the_sum_is_n_times_the_mean() -> None:
    hidden, base, weight, mask = tensors()
    assert selfaug.prompt_kl(hidden, hidden, weight, mask).item() == 0.0
    total = selfaug.prompt_kl(hidden, base, weight, mask, reduction="sum")
    mean = selfaug.prompt_kl(hidden, base, weight, mask)
    assert mean > 0
    torch.testing.assert_close(total, mean * mask.sum())


def test_without_a_position_it_is_0_and_has_a_graph() -> None:
    hidden, base, weight, mask = tensors()
    hidden.requires_grad_()
    loss = selfaug.prompt_kl(hidden, base, weight, torch.zeros_like(mask))
    loss.backward()
    assert loss.item() == 0.0
    assert hidden.grad is not None
    assert not hidden.grad.any()


@pytest.mark.parametrize(
    "change",
    [{"aligned_BT": torch.ones(B, T, dtype=torch.int64)}, {"aligned_BT": torch.ones(B, T + 1, dtype=torch.bool)},
     {"direction": "kl"}, {"reduction": "none"}],
)  # fmt: skip
def test_what_does_not_fit_is_refused(change: dict[str, object]) -> None:
    hidden, base, weight, mask = tensors()
    given = {"hidden_BTH": hidden, "base_hidden_BTH": base, "head_weight_VH": weight, "aligned_BT": mask, **change}
    with pytest.raises(ValueError, match=r"do not fit|not bool|is not one of"):
        selfaug.prompt_kl(**given)


def test_it_loads_neither_peft_nor_transformers_and_the_package_loads_no_torch() -> None:
    code = (
        "import sys, selfaug; assert 'torch' not in sys.modules, 'import selfaug loads torch'; "
        "selfaug.prompt_kl; assert 'torch' in sys.modules; "
        "found = {'peft', 'transformers', 'trl', 'datasets', 'accelerate', 'rich'} & sys.modules.keys(); "
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
