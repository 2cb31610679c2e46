"""Are the logged and evaluated numbers the oracle's, and does a loss that is not finite stop the run in time?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from selfaug.training.trainer import SelfAugTrainer
from tests.integration.steps import SEQUENCES, oracle_step, run
from tests.oracles.step import positions


@pytest.mark.parametrize("size", [1, 4])
def test_evaluation_reports_token_means(size: int, tmp_path: Path) -> None:
    """eval_nll and eval_alignment are means over all tokens of the set, whatever the batches; eval_loss their sum."""
    held_out = SEQUENCES["multi-turn"] + SEQUENCES["odd shapes"]
    found: dict[str, float] = {}

    def evaluate(trainer: SelfAugTrainer) -> None:
        original = trainer.train

        def train(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            rows = [{"input_ids": list(ids), "labels": list(labels)} for ids, labels in held_out]
            found.update(trainer.evaluate(Dataset.from_list(rows)))
            return result

        trainer.train = train  # type: ignore[method-assign]

    run(SEQUENCES["single-turn"], tmp_path, change=evaluate, per_device_eval_batch_size=size, align_fraction=0.5)
    nll = oracle_step(held_out, alpha=0.0).gradient()[0]
    total = oracle_step(held_out, alpha=2.0).gradient()[0]
    assert found["eval_nll"] == pytest.approx(nll, rel=1e-6)
    assert found["eval_alignment"] == pytest.approx((total - nll) / 2.0, rel=1e-6)
    assert found["eval_loss"] == pytest.approx(total, rel=1e-6)


def test_logged_numbers_of_a_step(tmp_path: Path) -> None:
    chosen = SEQUENCES["multi-turn"]
    ran = run(chosen, tmp_path)
    assert ran.trainer is not None
    logged = next(entry for entry in ran.trainer.state.log_history if "nll" in entry)
    nll = oracle_step(chosen, alpha=0.0).gradient()[0]
    total = oracle_step(chosen, alpha=2.0).gradient()[0]
    found = [positions(labels, False) for _, labels in chosen]
    assert logged["nll"] == pytest.approx(nll, rel=1e-6)
    assert logged["alignment"] == pytest.approx((total - nll) / 2.0, rel=1e-6)
    assert logged["loss"] == pytest.approx(total, rel=1e-5)
    assert logged["response_tokens"] == sum(len(each.targets) for each in found)
    assert logged["aligned_tokens"] == sum(len(each.aligned) for each in found)
    assert logged["reference_tokens"] == sum(each.aligned[-1] + 1 for each in found if each.aligned)
    assert logged["num_tokens"] == sum(len(ids) for ids, _ in chosen)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_before_the_optimiser_moves(value: float, tmp_path: Path) -> None:
    weights: dict[str, torch.Tensor] = {}
    models: list[torch.nn.Module] = []

    def spoil(model: torch.nn.Module) -> None:
        models.append(model)
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        with torch.no_grad():
            trained[-1][1][0, 0] = value
        weights.update({name: p.detach().clone() for name, p in trained})

    with pytest.raises(FloatingPointError, match="step 1 is not finite"):
        run(SEQUENCES["single-turn"], tmp_path, perturb=spoil, learning_rate=0.1)
    (model,) = models
    now = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(torch.equal(now[name].nan_to_num(), weights[name].nan_to_num()) for name in weights)
