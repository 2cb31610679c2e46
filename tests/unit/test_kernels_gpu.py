"""Are the kernels right on a GPU, at its own sizes, and does a sweep never make the host wait for it?"""

from __future__ import annotations

import pytest
import torch

from selfaug.objective import ALIGNMENT_TERMS, NLL, LMHead, Rows, WeightedTerm, kernels, sweep
from tests.oracles import rows
from tests.unit import kernel_checks
from tests.unit.kernel_checks import DTYPES, agree, run
from tests.unit.objective_cases import case

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

# The checks of the interpreter, collected here again for this module's device.
globals().update({name: check for name, check in vars(kernel_checks).items() if name.startswith("test_")})
small_tiles = kernel_checks.small_tiles


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda")


@pytest.mark.parametrize("V", [4095, 4096, 4097, 32771])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("direction", rows.DIRECTIONS)
def test_whole_tiles(
    direction: str, dtype: torch.dtype, V: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "TILE", 4096)
    c = case(direction, dtype, "bias, scale and soft cap", T=61, V=V, H=33, separate=True)
    agree(run(c, device, "kernels"), run(c, device, "torch"), dtype)


@pytest.mark.parametrize("elementwise", ["kernels", "torch"])
@pytest.mark.parametrize("direction", rows.DIRECTIONS)
def test_a_sweep_does_not_wait_for_the_device(direction: str, elementwise: str, device: torch.device) -> None:
    T, V, H = 60, 1031, 16
    hidden_TH = torch.randn(T, H, device=device, dtype=torch.bfloat16, requires_grad=True)
    reference_NH = torch.randn(20, H, device=device, dtype=torch.bfloat16)
    weight_VH = torch.randn(V, H, device=device, dtype=torch.bfloat16, requires_grad=True)
    label_N = torch.randint(0, V, (20,), device=device)
    nll, alignment = WeightedTerm(NLL(), 0.25), WeightedTerm(ALIGNMENT_TERMS[direction], 2.0)
    each = torch.arange(T, device=device).split(20)
    groups = [
        Rows(each[0], (nll,), label_N),
        Rows(each[1], (alignment,), reference_NH=reference_NH),
        Rows(each[2], (nll, alignment), label_N, reference_NH),
    ]

    def once() -> None:
        sweep(hidden_TH, LMHead(weight_VH), groups, elementwise=elementwise, block_bytes=2**20).loss.backward()

    once()  # compiling and loading may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        once()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert hidden_TH.grad is not None
    assert torch.isfinite(hidden_TH.grad).all()
