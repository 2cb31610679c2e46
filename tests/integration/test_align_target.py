"""Tests of `align_target` in the real trainer: the weight of each step, resume, and what is logged."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from selfaug.planning.plan import draw
from selfaug.training.checkpoints import METHOD_FILE
from tests.integration.steps import SEQUENCES, TOLERANCE, oracle_step, run
from tests.integration.test_stepwise_methods import factors, make, update
from tests.oracles import shift_target as oracle
from tests.oracles.step import positions, relative_distance

CHOSEN = SEQUENCES["single-turn"][:3] + SEQUENCES["multi-turn"][:1]
SEED, TARGET = 11, 0.1
START = (0.27 / TARGET) ** 1.5


@pytest.mark.parametrize(
    ("fraction", "layout"),
    [
        (1.0, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}),
        (0.5, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}),
        (0.5, {"packing": True, "max_length": 48, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 9}),
    ],
    ids=["all at once", "drawn, accumulated", "drawn, packed"],
)
def test_each_step_has_the_weight_that_the_steps_before_gave(
    fraction: float, layout: dict[str, int], tmp_path: Path
) -> None:
    """The learning rate is 0, so the shift of each sequence stays, and what is drawn changes."""
    ran = run(CHOSEN, tmp_path, align_target=TARGET, align_fraction=fraction, max_steps=4, seed=SEED, **layout)
    assert len(ran.gradients) == 4
    counts = [len(positions(labels, False).aligned) for _, labels in CHOSEN]
    nll = oracle_step(CHOSEN, alpha=0.0).gradient()[0]
    nats = [
        (oracle_step(CHOSEN, alpha=1.0, drawn=(i,)).gradient()[0] - nll) * sum(counts) for i in range(len(CHOSEN))
    ]  # fmt: skip
    drawn = [
        tuple(i for i, (ids, _) in enumerate(CHOSEN) if draw(SEED, step, torch.tensor(ids), fraction))
        for step in range(4)
    ]
    assert fraction == 1.0 or len(set(drawn)) > 1, "the draws differ"
    sums = [sum(nats[i] for i in each) for each in drawn]
    tokens = [float(sum(counts[i] for i in each)) for each in drawn]
    left = [0.75, 0.5, 0.25, 0.0]
    expected = oracle.alphas(sums, tokens, left, TARGET, START, fraction)
    assert abs(expected[1] / START - 1) > 0.1, "the weight moves"
    for step, gradient in enumerate(ran.gradients):
        right = oracle_step(CHOSEN, alpha=expected[step], align_fraction=fraction, drawn=drawn[step]).gradient()[1]
        assert relative_distance(gradient, right) < TOLERANCE[torch.float64]
    assert ran.trainer is not None
    logs = [entry for entry in ran.trainer.state.log_history if "alpha" in entry]
    assert [entry["alpha"] for entry in logs[:4]] == pytest.approx(expected[1:], rel=1e-6)
    assert [entry["shift"] for entry in logs[:4]] == pytest.approx(oracle.shifts(sums, tokens, fraction), rel=1e-6)
    if fraction < 1:  # planted: the divisor of the loss, that of all tokens, in the estimate
        wrong = oracle.alphas(sums, [float(sum(counts))] * 4, left, TARGET, START, fraction)
        assert wrong != pytest.approx(expected, rel=1e-2)


def test_a_resumed_training_is_that_without_a_stop_to_the_bit(tmp_path: Path) -> None:
    changes = {"align_target": 0.02, "align_fraction": 0.5, "lr_scheduler_type": "linear"}
    whole = make(tmp_path / "whole", "selfaug", **changes)
    whole.train()
    stopped = make(tmp_path / "two", "selfaug", save_strategy="steps", **changes)
    stopped.train()
    again = make(tmp_path / "two", "selfaug", save_strategy="steps", **changes)
    again.train(resume_from_checkpoint=str(tmp_path / "two" / "checkpoint-3"))
    kept = load_file(tmp_path / "two" / "checkpoint-3" / METHOD_FILE)
    assert abs(float(kept["shift_target.log_alpha"]) - 1.5 * math.log(0.27 / 0.02)) > 0.01, (
        "the weight has moved by then"
    )
    logs = [[entry["alpha"] for entry in t.state.log_history if "alpha" in entry] for t in (whole, again)]
    assert logs[0] == logs[1]
    assert all(torch.equal(update(again)[name], one) for name, one in update(whole).items())
    fixed = make(tmp_path / "fixed", "selfaug", align_fraction=0.5, lr_scheduler_type="linear")
    fixed.train()
    assert any(not torch.equal(factors(fixed)[name][1], one[1]) for name, one in factors(whole).items())
