"""Are the kernels right in Triton's interpreter, do they compile for GPUs, and who is chosen to do the work?"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from selfaug.common.errors import ConfigError
from selfaug.objective import ALIGNMENT_TERMS, NLL, BaseToTuned, RowTerm, WeightedTerm, kernels, sweep
from selfaug.objective.block_terms import block_terms, kernel_terms_, torch_terms_
from tests.unit.objective_cases import BLOCKS_MODULE, case

ROOT = Path(__file__).parents[2]
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
ALIGNMENT = BaseToTuned()


@dataclass(frozen=True)
class Sharper(NLL):
    """A term of somebody else's that builds on one of ours."""


def weighted(*terms: RowTerm) -> tuple[WeightedTerm, ...]:
    return tuple(WeightedTerm(term, 1.0) for term in terms)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with Triton and a GPU of today."""
    monkeypatch.setattr(kernels, "_triton_is_installed", lambda: True)
    monkeypatch.setattr(kernels, "_capability", lambda device: (9, 0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chosen", "fewest"),
    [pytest.param("dtype0 or not dtype", 50, id="float32"), pytest.param("", 140, id="all", marks=pytest.mark.nightly)],
)
def test_every_check_passes_in_the_interpreter(chosen: str, fewest: int) -> None:
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", "-x", "-k", chosen]
    done = subprocess.run(
        [*command, "tests/unit/kernel_checks.py"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-5000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > fewest, done.stdout[-500:]


@pytest.mark.parametrize(
    ("dtype", "capability", "directions"), [("bf16", 90, (0, 1, 2, 3)), ("fp16", 90, (1,)), ("fp32", 80, (3,))]
)
def test_the_kernel_compiles_for_a_gpu(dtype: str, capability: int, directions: tuple[int, ...]) -> None:
    """The interpreter runs what the compiler would refuse; this machine need not have the GPU to compile for it."""
    triton = pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("nothing is compiled under TRITON_INTERPRET=1")
    from triton.backends.compiler import GPUTarget

    from selfaug.objective.kernels.row_kernel import row_kernel

    pointers = {"projected": f"*{dtype}", "reference": f"*{dtype}", "labels": "*i64", "nll_shares": "*fp32"}
    pointers |= {"alignment_shares": "*fp32", "results": "*fp32"}
    integers = dict.fromkeys(("projected_stride", "reference_stride", "count", "vocabulary"), "i32")
    numbers = dict.fromkeys(("scale", "soft_cap", "reference_scale", "reference_soft_cap"), "fp32")
    # The NLL alone, and every direction together with it, capped: all branches of the kernel.
    for direction in directions:
        flags = {"HAS_NLL": True, "DIRECTION": direction, "SHARED": direction > 0, "GRADIENT": True}
        flags |= {"CAPPED": direction > 0, "REFERENCE_CAPPED": direction > 0, "TILE": kernels.TILE}
        types = pointers | integers | numbers | dict.fromkeys(flags, "constexpr")
        signature = {name: types[name] for name in row_kernel.arg_names}
        source = triton.compiler.ASTSource(row_kernel, signature, constexprs=flags)
        target = GPUTarget("cuda", capability, 32)
        compiled = triton.compile(source, target=target, options=kernels.COMPILED_WITH)
        assert f"sm_{capability}" in compiled.asm["ptx"]
        # A fused product and sum on one model's side alone would keep equal models from cancelling to 0.
        assert compiled.metadata.enable_fp_fusion is False


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu_the_kernels_are_chosen_where_they_have_a_form(dtype: torch.dtype) -> None:
    for alignment in ALIGNMENT_TERMS.values():
        for terms in ((NLL(),), (alignment,), (NLL(), alignment), (alignment, NLL())):
            assert block_terms(weighted(*terms), dtype, CUDA) is kernel_terms_
            assert block_terms(weighted(*terms), dtype, CUDA, "torch") is torch_terms_


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("terms", [(Sharper(),), (NLL(), Sharper()), (NLL(), NLL()), (ALIGNMENT, ALIGNMENT)])
def test_terms_without_a_form_take_the_torch_path(terms: tuple[RowTerm, ...]) -> None:
    assert block_terms(weighted(*terms), torch.float32, CUDA) is torch_terms_
    with pytest.raises(ConfigError, match="have no common form"):
        block_terms(weighted(*terms), torch.float32, CUDA, "kernels")


@pytest.mark.usefixtures("installed")
def test_what_the_kernels_cannot_do_takes_the_torch_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Double precision, a CPU, an old GPU, no Triton."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    terms = weighted(NLL())
    assert block_terms(terms, torch.float64, CUDA) is torch_terms_
    assert block_terms(terms, torch.float32, CPU) is torch_terms_
    c = case("jsd", torch.float32)
    with pytest.raises(ConfigError, match="the device is 'cpu'"):
        sweep(c.hidden_TH, c.head, c.groups(), elementwise="kernels")
    with pytest.raises(ValueError, match="'fast' is not one of kernels, torch"):
        sweep(c.hidden_TH, c.head, c.groups(), elementwise="fast")
    monkeypatch.setattr(kernels, "_capability", lambda device: (7, 5))
    assert block_terms(terms, torch.float32, CUDA) is torch_terms_
    with pytest.raises(ConfigError, match="older than Triton"):
        block_terms(terms, torch.float32, CUDA, "kernels")
    monkeypatch.setattr(kernels, "_triton_is_installed", lambda: False)
    assert block_terms(terms, torch.float32, CUDA) is torch_terms_
    with pytest.raises(ConfigError, match="triton is not installed"):
        block_terms(terms, torch.float32, CUDA, "kernels")


def test_blocks_without_float32_copies_hold_more_rows() -> None:
    """The aligned rows of issue size on a GPU: 448 MiB of bfloat16 logits of both models and nothing else."""
    V = 151_936
    c = case("base_to_tuned", torch.bfloat16, V=V, H=1)
    group, limit = c.groups()[1], BLOCKS_MODULE.default_block_bytes(CUDA)
    kernel_rows = BLOCKS_MODULE._rows_per_block(group, c.head, CUDA, limit, False)
    assert kernel_rows == 768
    assert kernel_rows * V * 2 * 2 <= limit
    torch_rows = BLOCKS_MODULE._rows_per_block(group, c.head, CUDA, limit, True)
    assert 0 < torch_rows < kernel_rows / 4
    assert torch_rows * V * (2 * 2 + 6 * 4) <= limit
