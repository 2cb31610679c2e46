"""Does one optimiser step of the real trainer have the gradient of a loop over single sequences?

The oracle (`tests/oracles/step.py`) runs two models loaded apart on one unpadded sequence at a time, with dense logits.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from selfaug.planning.plan import draw, draw_tokens
from selfaug.training.trainer import SelfAugTrainer
from tests.integration.steps import SEQUENCES, TOLERANCE, Ran, oracle_step, run
from tests.oracles.step import positions, relative_distance

LAYOUTS: dict[str, dict[str, Any]] = {
    "padding": {},
    "packing": {"packing": True, "max_length": 48, "per_device_train_batch_size": 1},
    "padding-free": {"padding_free": True},
    "padding-free, multiple of 16": {"padding_free": True, "pad_to_multiple_of": 16},
    "padding, multiple of 16": {"pad_to_multiple_of": 16},
}


def check_layout(layout: str, ran: Ran) -> None:
    """The precondition of a layout's comparison: it did occur."""
    batches = ran.batches[0]
    padded = any(bool((batch["attention_mask"] == 0).any()) for batch in batches if "attention_mask" in batch)
    documents = [int((batch["position_ids"] == 0).sum()) for batch in batches if "position_ids" in batch]
    if layout.startswith("padding-free") or layout == "packing":
        assert max(documents) > 1
        assert not padded
    else:
        assert padded
        assert not documents
    if "multiple" in layout:
        assert all(batch["input_ids"].shape[1] % 16 == 0 for batch in batches)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    chosen = SEQUENCES[kind]
    settings = dict(LAYOUTS[layout])
    if layout == "packing":
        settings["gradient_accumulation_steps"] = len(chosen)  # more than there are rows: one step
    ran = run(chosen, tmp_path, dtype=dtype, alpha=2.0, **settings)
    check_layout(layout, ran)
    loss, expected = oracle_step(chosen, dtype=dtype).gradient()
    assert relative_distance(ran.gradient, expected) < TOLERANCE[dtype]
    assert ran.losses == pytest.approx([loss], rel=1e-5)


@pytest.mark.parametrize("boundary", [False, True], ids=["boundary out", "boundary in"])
@pytest.mark.parametrize("direction", ["base_to_tuned", "tuned_to_base", "jsd"])
@pytest.mark.parametrize("layout", ["padding", "packing"])
def test_directions_and_boundary(layout: str, direction: str, boundary: bool, tmp_path: Path) -> None:
    chosen = SEQUENCES["single-turn"] + SEQUENCES["multi-turn"]
    settings = {**LAYOUTS[layout], "gradient_accumulation_steps": len(chosen)}
    ran = run(chosen, tmp_path, alpha=1.5, align_direction=direction, align_boundary=boundary, **settings)
    check_layout(layout, ran)
    step = oracle_step(chosen, alpha=1.5, direction=direction, align_boundary=boundary)
    assert relative_distance(ran.gradient, step.gradient()[1]) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("reentrant", [None, False, True], ids=["no checkpointing", "checkpointing", "re-entrant"])
@pytest.mark.parametrize("objective", ["sweep", "plain"])
def test_accumulation_and_checkpointing(
    accumulation: int, reentrant: bool | None, objective: str, tmp_path: Path
) -> None:
    chosen = SEQUENCES["single-turn"] + SEQUENCES["multi-turn"][:2]
    settings: dict[str, Any] = {"gradient_checkpointing": reentrant is not None, "objective": objective}
    if reentrant is not None:
        settings["gradient_checkpointing_kwargs"] = {"use_reentrant": reentrant}
    ran = run(
        chosen,
        tmp_path,
        per_device_train_batch_size=len(chosen) // accumulation,
        gradient_accumulation_steps=accumulation,
        **settings,
    )
    assert len(ran.batches[0]) == accumulation
    assert ran.trainer is not None
    assert ran.trainer.model.is_gradient_checkpointing == (reentrant is not None)
    assert relative_distance(ran.gradient, oracle_step(chosen).gradient()[1]) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_real_draw(layout: str, tmp_path: Path) -> None:
    """align_fraction 1/2 over several steps: each step's gradient is that of the sequences it draws."""
    chosen = SEQUENCES["single-turn"]
    steps = 5
    settings = {**LAYOUTS[layout], "gradient_accumulation_steps": 6, "max_steps": steps, "seed": 11}
    ran = run(chosen, tmp_path, align_fraction=0.5, **settings)
    seen = set()
    for number, gradient in enumerate(ran.gradients):
        drawn = tuple(i for i, (ids, _) in enumerate(chosen) if draw(11, number, torch.tensor(ids), 0.5))
        seen.add(drawn)
        expected = oracle_step(chosen, align_fraction=0.5, drawn=drawn).gradient()[1]
        assert relative_distance(gradient, expected) < TOLERANCE[torch.float64]
    assert len(ran.gradients) == steps
    assert len(seen) >= 3
    assert any(0 < len(drawn) < 6 for drawn in seen)


def test_the_mean_over_all_draws_is_the_full_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """align_fraction 1/2 on 6 sequences: each of the 2^6 draws has probability 1/64."""
    chosen = SEQUENCES["single-turn"]
    number = {tuple(ids): i for i, (ids, _) in enumerate(chosen)}

    def one_of_all(seed: int, step: int, tokens: torch.Tensor, align_fraction: float) -> bool:
        assert align_fraction == 0.5
        return bool(step >> number[tuple(tokens.tolist())] & 1)

    monkeypatch.setattr("selfaug.planning.plan.draw", one_of_all)
    ran = run(chosen, tmp_path, align_fraction=0.5, max_steps=64, per_device_train_batch_size=6)
    assert len(ran.gradients) == 64
    full = oracle_step(chosen).gradient()[1]
    none, everything = ran.gradients[0], ran.gradients[63]
    assert relative_distance(none, full) > 0.01
    assert relative_distance(everything, full) > 0.01  # weighted by 1 / (1/2)
    mean = {name: torch.stack([each[name] for each in ran.gradients]).mean(dim=0) for name in full}
    assert relative_distance(mean, full) < TOLERANCE[torch.float64]
    for drawn in itertools.combinations(range(6), 2):
        gradient = ran.gradients[sum(1 << i for i in drawn)]
        expected = oracle_step(chosen, align_fraction=0.5, drawn=drawn).gradient()[1]
        assert relative_distance(gradient, expected) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("layout", ["padding", "packing"])
def test_a_real_draw_of_tokens(layout: str, tmp_path: Path) -> None:
    """Half of the sequences and of their tokens, over several steps: each gradient is that of what is drawn."""
    chosen = SEQUENCES["single-turn"]
    settings = {**LAYOUTS[layout], "gradient_accumulation_steps": 6, "max_steps": 4, "seed": 11}
    ran = run(chosen, tmp_path, align_fraction=0.5, align_token_fraction=0.5, **settings)
    seen = 0
    for number, gradient in enumerate(ran.gradients):
        drawn = {}
        for i, (ids, labels) in enumerate(chosen):
            tokens = torch.tensor(ids)
            if draw(11, number, tokens, 0.5):
                aligned = positions(labels, align_boundary=False).aligned
                drawn[i] = [t for t in aligned if draw_tokens(11, number, tokens, 0.5)[t]]
                seen += 0 < len(drawn[i]) < len(aligned)
        expected = oracle_step(chosen, align_fraction=0.25, drawn=drawn).gradient()[1]
        assert relative_distance(gradient, expected) < TOLERANCE[torch.float64]
    assert seen >= 3


def test_the_mean_over_all_draws_of_tokens_is_the_full_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """align_token_fraction 1/2, tokens drawn in 4 classes: each of the 2^4 draws has probability 1/16."""
    chosen = SEQUENCES["single-turn"]

    def one_of_all(seed: int, step: int, tokens: torch.Tensor, align_token_fraction: float) -> torch.Tensor:
        assert align_token_fraction == 0.5
        return (step >> (torch.arange(len(tokens)) + int(tokens[0])) % 4) & 1 == 1

    monkeypatch.setattr("selfaug.planning.plan.draw_tokens", one_of_all)
    settings = {"align_token_fraction": 0.5, "max_steps": 16, "per_device_train_batch_size": 6}
    ran = run(chosen, tmp_path, **settings)
    full = oracle_step(chosen).gradient()[1]
    assert min(relative_distance(each, full) for each in ran.gradients) > 0.01
    mean = {name: torch.stack([each[name] for each in ran.gradients]).mean(dim=0) for name in full}
    assert relative_distance(mean, full) < TOLERANCE[torch.float64]


def test_a_reference_of_one_row_beside_padded_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens under flash attention, here with the masks that keep documents of a row apart on any device."""
    monkeypatch.setattr("selfaug.training.trainer.takes_documents_in_a_row", lambda model: True)
    chosen = SEQUENCES["single-turn"]
    ran = run(chosen, tmp_path, per_device_train_batch_size=3)
    references = [batch["selfaug"].reference for batch in ran.batches[0]]
    assert all(len(inputs["input_ids"]) == 1 and "attention_mask" not in inputs for inputs in references)
    check_layout("padding", ran)
    assert relative_distance(ran.gradient, oracle_step(chosen).gradient()[1]) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("fractions", [(1e-9, 1.0), (1.0, 1e-9)], ids=["sequences", "tokens"])
def test_a_step_with_nothing_drawn_has_no_reference_pass(
    fractions: tuple[float, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = SEQUENCES["single-turn"]

    def refuse(trainer: SelfAugTrainer) -> None:
        assert trainer.reference is not None
        monkeypatch.setattr(trainer.reference, "serving", lambda model: pytest.fail("a reference pass"))

    options = {"align_fraction": fractions[0], "align_token_fraction": fractions[1], "check_reference": False}
    ran = run(chosen, tmp_path, change=refuse, **options)
    expected = oracle_step(chosen, alpha=0.0).gradient()[1]
    assert relative_distance(ran.gradient, expected) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("layout", ["packing", "padding-free"])
def test_a_cache_asked_for_by_the_model_does_not_join_documents(layout: str, tmp_path: Path) -> None:
    """transformers builds no mask between packed documents where a cache is in use."""

    def ask_for_a_cache(trainer: SelfAugTrainer) -> None:
        trainer.model.config.use_cache = True
        trainer.model.get_base_model().config.use_cache = True

    chosen = SEQUENCES["single-turn"]
    settings = {**LAYOUTS[layout], "gradient_accumulation_steps": len(chosen)}
    ran = run(chosen, tmp_path, change=ask_for_a_cache, **settings)
    check_layout(layout, ran)
    assert relative_distance(ran.gradient, oracle_step(chosen).gradient()[1]) < TOLERANCE[torch.float64]


def test_alpha_zero_has_no_reference_pass(tmp_path: Path) -> None:
    chosen = SEQUENCES["multi-turn"]
    ran = run(chosen, tmp_path, alpha=0.0)
    assert relative_distance(ran.gradient, oracle_step(chosen, alpha=0.0).gradient()[1]) < TOLERANCE[torch.float64]
    assert ran.trainer is not None
    assert ran.trainer.reference is None


def test_a_step_without_responses_or_without_prompts(tmp_path: Path) -> None:
    """All prompt: only the alignment; all response: only the NLL; either way the divisor of nothing is never used."""
    prompts = tuple((ids, [-100] * len(ids)) for ids, _ in SEQUENCES["single-turn"])
    ran = run(prompts, tmp_path / "prompts")
    assert relative_distance(ran.gradient, oracle_step(prompts).gradient()[1]) < TOLERANCE[torch.float64]

    mixed = (SEQUENCES["odd shapes"][1], SEQUENCES["odd shapes"][2])
    ran = run(mixed, tmp_path / "mixed", per_device_train_batch_size=1)
    assert relative_distance(ran.gradient, oracle_step(mixed).gradient()[1]) < TOLERANCE[torch.float64]
