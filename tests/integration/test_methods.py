"""Does a step of the real trainer have each rival's gradient, and the base line's where the rival has no strength?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from selfaug.common.errors import ConfigError
from selfaug.training.config import SelfAugConfig
from tests.integration.steps import SEQUENCES, TOLERANCE, Ran, run
from tests.models import adapter_name, tiny, with_lora
from tests.oracles import dense
from tests.oracles.method_step import Compare, Own, method_gradient
from tests.oracles.step import positions, relative_distance

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


def fine_tuned(folder: Path) -> str:
    """A model that another adapter was merged into."""
    model = with_lora(tiny("llama"), seed=5)
    merged = model.merge_and_unload()
    merged.save_pretrained(folder)
    return str(folder)


def anchored(z: Tensor, r: Tensor, y: Tensor, pull: float = 0.3) -> Tensor:
    """KL to the renormalised geometric mean of both distributions, which is held constant."""
    a = z.softmax(-1).detach() ** (1 - pull) * r.softmax(-1) ** pull
    a = a / a.sum(-1, keepdim=True)
    return (a * (a.log() - z.log_softmax(-1))).sum(-1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_goes_a_part_of_the_way_to_the_fine_tuned_model(layout: str, plain_run: Ran, tmp_path: Path) -> None:
    options = {"anchor_pull": 0.3, "anchor_share": 0.8}
    path = fine_tuned(tmp_path / "sft")
    settings = {"model_init_kwargs": {"dtype": torch.float64}, "reference": path, **LAYOUTS[layout]}
    ran = run(CHOSEN, tmp_path / "run", method="anchored", method_options=options, **settings)

    def own(z: Tensor, y: Tensor) -> Tensor:
        return 0.2 * dense.nll_N(z, y)

    def expected(base: Any, compare: Compare) -> Any:
        return method_gradient(base, with_lora(tiny("llama")), CHOSEN, own, compare, 0.8)

    from transformers import AutoModelForCausalLM

    sft = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    loss, gradient = expected(sft, anchored)
    assert relative_distance(plain_run.gradient, gradient) > 0.05
    assert relative_distance(ran.gradient, gradient) < TOLERANCE[torch.float64]
    assert ran.losses == pytest.approx([loss], rel=1e-5)
    # Planted: the base in the fine-tuned model's place, and the two weights of the mixture exchanged.
    assert relative_distance(expected(tiny("llama"), anchored)[1], gradient) > 0.01
    assert relative_distance(expected(sft, lambda z, r, y: anchored(z, r, y, 0.7))[1], gradient) > 0.01


def talr_by_median(z: Tensor, y: Tensor, all_nll: Tensor) -> Tensor:
    nll = dense.nll_N(z, y)
    tau = all_nll.sort().values
    tau = (tau[(len(tau) - 1) // 2] + tau[len(tau) // 2]) / 2
    return nll * torch.maximum((-nll / tau).exp(), torch.tensor(0.01)).detach()


def test_the_published_temperature_is_the_median_loss_of_the_batch(plain_run: Ran, tmp_path: Path) -> None:
    """All sequences in one micro-batch, as the published rule has it; another median is another gradient."""
    tuned = with_lora(tiny("llama"))
    losses = []
    for ids, labels in CHOSEN:
        targets = positions(labels, False).targets
        logits = tuned(input_ids=torch.tensor([ids]), use_cache=False).logits[0][targets]
        losses.append(dense.nll_N(logits, torch.tensor([labels[t + 1] for t in targets])).detach())
    whole = torch.cat(losses)
    ran = run(CHOSEN, tmp_path, method="talr", per_device_train_batch_size=4, gradient_accumulation_steps=1)
    loss, expected = oracle(lambda z, y: talr_by_median(z, y, whole), None, 0.0)
    assert relative_distance(plain_run.gradient, expected) > 0.05
    assert relative_distance(ran.gradient, expected) < TOLERANCE[torch.float64]
    assert ran.losses == pytest.approx([loss], rel=1e-5)
    other = oracle(lambda z, y: talr_by_median(z, y, whole + 0.5), None, 0.0)[1]
    assert relative_distance(other, expected) > 0.01


def prompt_nll_gradient(weight: float, fraction: float = 1.0, drawn: tuple[int, ...] = (0, 1, 2, 3)) -> Any:
    """One unpadded sequence at a time: every next token of the prompt is learnt, as the response is."""
    tuned = with_lora(tiny("llama"))
    found = [positions(labels, False) for _, labels in CHOSEN]
    n_response, n_prompt = sum(len(p.targets) for p in found), sum(len(p.aligned) for p in found)
    total = 0.0
    for index, ((ids, _), each) in enumerate(zip(CHOSEN, found, strict=True)):
        log_p = tuned(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
        loss = -sum(log_p[t, ids[t + 1]] for t in each.targets) / n_response
        if index in drawn:
            loss = loss - weight * sum(log_p[t, ids[t + 1]] for t in each.aligned) / (fraction * n_prompt)
        loss.backward()
        total += loss.item()
    return total, {adapter_name(n): p.grad.clone() for n, p in tuned.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_prompts_own_tokens_are_learnt_without_a_reference(layout: str, plain_run: Ran, tmp_path: Path) -> None:
    options = {"prompt_weight": 0.4}
    ran = run(CHOSEN, tmp_path, method="prompt-nll", method_options=options, **LAYOUTS[layout])
    loss, expected = prompt_nll_gradient(0.4)
    assert relative_distance(plain_run.gradient, expected) > 0.05
    assert relative_distance(ran.gradient, expected) < TOLERANCE[torch.float64]
    assert ran.losses == pytest.approx([loss], rel=1e-5)
    assert ran.trainer is not None
    assert ran.trainer.reference is None
    logged = next(event for event in ran.trainer.state.log_history if "nll" in event)
    assert logged["loss"] == pytest.approx(logged["nll"] + 0.4 * logged["prompt_nll"], rel=1e-5)
    assert logged["reference_tokens"] == 0
    assert "alignment" not in logged


def test_prompt_tokens_of_drawn_sequences_are_learnt_with_their_share_taken_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {tuple(CHOSEN[i][0]) for i in (1, 3)}
    monkeypatch.setattr(
        "selfaug.planning.plan.draw", lambda seed, step, tokens, fraction: tuple(tokens.tolist()) in wanted
    )
    ran = run(CHOSEN, tmp_path, method="prompt-nll", method_options={"prompt_weight": 0.4}, align_fraction=0.5)
    expected = prompt_nll_gradient(0.4, 0.5, (1, 3))[1]
    assert relative_distance(ran.gradient, expected) < TOLERANCE[torch.float64]
    assert relative_distance(ran.gradient, prompt_nll_gradient(0.4)[1]) > 0.01


def test_the_prompt_is_held_and_learnt_at_once(tmp_path: Path) -> None:
    """The gradient is linear in its parts, with one reference pass for the part that needs it."""
    both = run(CHOSEN, tmp_path / "both", method="selfaug+prompt-nll", method_options={"prompt_weight": 0.4}, alpha=1.5)
    held = run(CHOSEN, tmp_path / "held", method="selfaug", alpha=1.5).gradient
    learnt = run(CHOSEN, tmp_path / "learnt", method="prompt-nll", method_options={"prompt_weight": 0.4}).gradient
    plain = run(CHOSEN, tmp_path / "plain", method="sft").gradient
    expected = {name: held[name] + learnt[name] - plain[name] for name in plain}
    assert relative_distance(both.gradient, expected) < 10 * TOLERANCE[torch.float64]


def test_the_responses_first_token_is_not_learnt_twice() -> None:
    with pytest.raises(ConfigError, match="learn the response's first token twice"):
        SelfAugConfig(output_dir="unused", bf16=False, method="prompt-nll", align_boundary=True)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("prompt-nll", {"prompt_weight": 0}), ("kl-response", {"beta": 0}), ("dft", {"power": 0}),
        ("anchored", {"anchor_share": 0}), ("eaft", {"gate_power": 0}), ("tmkl", {"mask_weight": 0}),
        ("talr", {"floor": 1}), ("selfaug", None),
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
