"""Does a step of the real trainer have each rival's gradient, and the base line's where the rival has no strength?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.integration.steps import SEQUENCES, TOLERANCE, Ran, run
from tests.models import tiny, with_lora
from tests.oracles import dense
from tests.oracles.method_step import Compare, Own, method_gradient
from tests.oracles.step import relative_distance

CHOSEN = SEQUENCES["single-turn"][:3] + SEQUENCES["multi-turn"][:1]
LAYOUTS: dict[str, dict[str, Any]] = {
    "padding": {},
    "packing": {
        "packing": True, "max_length": 48, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 9
    },
}  # fmt: skip


def dft(z: Tensor, y: Tensor) -> Tensor:
    nll = dense.nll_N(z, y)
    return nll * (-nll).exp().detach()


def talr(z: Tensor, y: Tensor) -> Tensor:
    nll = dense.nll_N(z, y)
    return nll * (-nll / 2).exp().clamp(min=0.1).detach()


def eaft(z: Tensor, y: Tensor) -> Tensor:
    top = z.topk(20).values.softmax(-1)
    gate = -(top * top.log()).sum(-1) / math.log(20)
    return dense.nll_N(z, y) * gate.detach()


def kl(z: Tensor, r: Tensor, y: Tensor) -> Tensor:
    return dense.alignment_N("base_to_tuned", z, r)


def without_gold(z: Tensor, r: Tensor, y: Tensor) -> Tensor:
    kept = torch.ones_like(z, dtype=torch.bool).scatter(1, y[:, None], False)
    shape = (len(z), z.shape[1] - 1)
    return dense.alignment_N("base_to_tuned", z[kept].reshape(shape), r[kept].reshape(shape))


ORACLES: dict[str, tuple[dict[str, Any], Own, Compare | None, float]] = {
    "kl-response": ({"beta": 0.7}, dense.nll_N, kl, 0.7),
    "dft": ({}, dft, None, 0.0),
    "asft": ({"anchor": 0.3}, dft, kl, 0.3),
    "eaft": ({}, eaft, None, 0.0),
    "tmkl": ({"mask_weight": 0.9}, dense.nll_N, without_gold, 0.9),
    "talr": ({"tau": 2.0, "floor": 0.1}, talr, None, 0.0),
}


def oracle(own: Own, compare: Compare | None, weight: float, **options: Any) -> Any:
    return method_gradient(tiny("llama"), with_lora(tiny("llama")), CHOSEN, own, compare, weight, **options)


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run(CHOSEN, tmp_path_factory.mktemp("sft"), method="sft")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", ORACLES)
def test_a_step_has_the_methods_gradient(method: str, layout: str, plain_run: Ran, tmp_path: Path) -> None:
    options, own, compare, weight = ORACLES[method]
    ran = run(CHOSEN, tmp_path, method=method, method_options=options, **LAYOUTS[layout])
    loss, expected = oracle(own, compare, weight)
    assert relative_distance(plain_run.gradient, expected) > 0.05
    assert relative_distance(ran.gradient, expected) < TOLERANCE[torch.float64]
    assert ran.losses == pytest.approx([loss], rel=1e-5)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("kl-response", {"beta": 0}), ("dft", {"power": 0}), ("eaft", {"gate_power": 0}),
        ("tmkl", {"mask_weight": 0}), ("talr", {"floor": 1}), ("selfaug", None),
    ],
)  # fmt: skip
def test_without_strength_a_step_is_the_base_lines(
    method: str, options: dict[str, Any] | None, plain_run: Ran, tmp_path: Path
) -> None:
    settings = {"alpha": 0.0} if method == "selfaug" else {}
    ran = run(CHOSEN, tmp_path, method=method, method_options=options, **settings)
    assert ran.gradient.keys() == plain_run.gradient.keys()
    assert all(torch.equal(ran.gradient[name], plain_run.gradient[name]) for name in ran.gradient)
    assert ran.trainer is not None
    assert ran.trainer.reference is None


def test_drawn_sequences_are_held_with_their_share_taken_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = (0, 3)
    wanted = {tuple(CHOSEN[i][0]) for i in drawn}
    monkeypatch.setattr(
        "selfaug.planning.plan.draw", lambda seed, step, tokens, fraction: tuple(tokens.tolist()) in wanted
    )
    ran = run(CHOSEN, tmp_path, method="kl-response", align_fraction=0.5)
    loss, expected = oracle(dense.nll_N, kl, 0.5, fraction=0.5, drawn=drawn)
    assert relative_distance(ran.gradient, expected) < TOLERANCE[torch.float64]
    assert relative_distance(ran.gradient, oracle(dense.nll_N, kl, 0.5)[1]) > 0.01
    assert ran.losses == pytest.approx([loss], rel=1e-5)


@pytest.mark.parametrize("boundary", [False, True], ids=["boundary out", "boundary in"])
def test_a_combination_adds_up_its_parts(boundary: bool, tmp_path: Path) -> None:
    """Prompt and response aligned at once, with DFT in the NLL's place: the gradient is linear in its parts."""
    prompt = {"alpha": 2.0, "align_boundary": boundary}
    together = run(CHOSEN, tmp_path / "all", method="selfaug+asft", method_options="anchor=0.3", **prompt)
    asft = run(CHOSEN, tmp_path / "asft", method="asft", method_options="anchor=0.3").gradient
    aligned, plain = (run(CHOSEN, tmp_path / str(a), **{**prompt, "alpha": a}).gradient for a in (2.0, 0.0))
    expected = {name: asft[name] + aligned[name] - plain[name] for name in asft}
    assert relative_distance(asft, expected) > 0.05
    assert relative_distance(together.gradient, expected) < TOLERANCE[torch.float64]


def test_what_a_method_costs_is_logged(tmp_path: Path) -> None:
    ran = run(CHOSEN, tmp_path, method="selfaug+asft", method_options={"anchor": 0.25})
    assert ran.trainer is not None
    entry = next(e for e in ran.trainer.state.log_history if "nll" in e)
    assert entry["loss"] == pytest.approx(
        entry["dft"] + 0.25 * entry["kl_response"] + 2.0 * entry["alignment"], rel=1e-4
    )
    assert entry["nll"] > entry["dft"]
