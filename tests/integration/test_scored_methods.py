"""Are response tokens weighted by what the base thinks of them, whatever layout they are trained in?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from selfaug.before.scores import FILE, BaseScores, score_rows
from selfaug.common.errors import ConfigError, DataError
from selfaug.reference.adapter import BaseReference
from tests.integration.steps import SEQUENCES, TOLERANCE, Ran, run
from tests.models import tiny, with_lora
from tests.oracles import scored_step as oracle
from tests.oracles.step import positions, relative_distance

CHOSEN = SEQUENCES["single-turn"] + SEQUENCES["multi-turn"][:2]
LAYOUTS: dict[str, dict[str, Any]] = {
    "padding": {},
    "packing": {
        "packing": True, "max_length": 48, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 9
    },
    "padding-free": {"padding_free": True},
    "padding, multiple of 16": {"pad_to_multiple_of": 16},
}  # fmt: skip
# Weights are stored in float32: 6e-8 of relative rounding, on a few dozen tokens.
STORED = 1e-6


@pytest.fixture(scope="module")
def scores() -> oracle.Scores:
    return oracle.base_scores(tiny("llama"), CHOSEN)


@pytest.fixture(scope="module")
def limit(scores: oracle.Scores) -> float:
    """A perplexity that splits the tokens of a random model in two."""
    found = sorted(nll for row in scores for nll in row)
    middle = len(found) // 2
    return float(torch.tensor((found[middle - 1] + found[middle]) / 2).exp())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stm_learns_what_the_base_finds_plausible(
    layout: str, scores: oracle.Scores, limit: float, tmp_path: Path
) -> None:
    ran = run(CHOSEN, tmp_path, method="stm", method_options={"perplexity": limit}, **LAYOUTS[layout])
    weights = oracle.stm(scores, limit)
    kept = sum(weight for row in weights for weight in row)
    assert 0 < kept < sum(map(len, weights))
    loss, expected = oracle.scored_gradient(with_lora(tiny("llama")), CHOSEN, weights)
    assert relative_distance(ran.gradient, expected) < max(TOLERANCE[torch.float64], STORED)
    assert ran.losses == pytest.approx([loss], rel=1e-5)
    assert ran.trainer is not None
    logged = next(e for e in ran.trainer.state.log_history if "nll" in e)
    assert logged["response_tokens"] == kept


@pytest.mark.parametrize(
    ("layout", "tau"), [("padding", None), ("padding", 3.0), ("packing", None), ("padding-free", 3.0)]
)
def test_flow_learns_most_from_what_the_base_finds_easy(
    layout: str, tau: float | None, scores: oracle.Scores, tmp_path: Path
) -> None:
    options = None if tau is None else {"flow_tau": tau}
    ran = run(CHOSEN, tmp_path, method="flow", method_options=options, **LAYOUTS[layout])
    weights = oracle.flow(scores, tau)
    loss, expected = oracle.scored_gradient(with_lora(tiny("llama")), CHOSEN, weights)
    plain = oracle.scored_gradient(with_lora(tiny("llama")), CHOSEN, [[1.0] * len(row) for row in scores])[1]
    assert relative_distance(plain, expected) > 0.01
    assert relative_distance(ran.gradient, expected) < max(TOLERANCE[torch.float64], STORED)
    assert ran.losses == pytest.approx([loss], rel=1e-5)


@pytest.mark.parametrize(("method", "options"), [("stm", "perplexity=.inf"), ("flow", "flow_tau=.inf")])
def test_without_strength_a_step_is_the_base_lines(method: str, options: str, tmp_path: Path) -> None:
    ran = run(CHOSEN, tmp_path / method, method=method, method_options=options)
    plain = run(CHOSEN, tmp_path / "sft", method="sft")
    assert all(torch.equal(ran.gradient[name], plain.gradient[name]) for name in plain.gradient)


def test_a_masked_token_does_not_become_a_part_of_the_prompt(limit: float, tmp_path: Path) -> None:
    """Both parts of the loss act where they would act alone: their gradients add up."""
    options: dict[str, Any] = {"method_options": {"perplexity": limit}}
    together = run(CHOSEN, tmp_path / "both", method="selfaug+stm", alpha=1.5, **options).gradient
    masked = run(CHOSEN, tmp_path / "stm", method="stm", **options).gradient
    aligned, plain = (run(CHOSEN, tmp_path / str(a), alpha=a).gradient for a in (1.5, 0.0))
    expected = {name: masked[name] + aligned[name] - plain[name] for name in masked}
    assert relative_distance(together, expected) < TOLERANCE[torch.float64]


def test_the_pass_scores_each_response_token_with_the_adapter_off(scores: oracle.Scores) -> None:
    rows = [{"input_ids": list(ids), "labels": list(labels)} for ids, labels in CHOSEN]
    model = with_lora(tiny("llama")).get_base_model()
    found = {tuple(ids): nll_T for ids, nll_T in score_rows(model, BaseReference(), rows, batch_tokens=64)}
    for (ids, labels), expected in zip(CHOSEN, scores, strict=True):
        targets = [t + 1 for t in positions(labels, False).targets]
        nll_T = found[tuple(ids)]
        assert nll_T[targets].tolist() == pytest.approx(expected, rel=1e-5)
        assert int(nll_T.isnan().sum()) == len(ids) - len(targets)


def test_scores_are_kept_for_the_same_base_and_made_anew_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []

    def counted(model: Any, base: Any, rows: Any, **options: Any) -> Any:
        passes.append(len(rows))
        return score_rows(model, base, rows, **options)

    monkeypatch.setattr("selfaug.before.token_weights.score_rows", counted)

    def trained(chosen: Any, **given: Any) -> Ran:
        return run(chosen, tmp_path, method="flow", **given)

    first = trained(CHOSEN[:4])
    assert (tmp_path / FILE).is_file()
    again = trained(CHOSEN[:4])
    assert passes == [4]
    assert all(torch.equal(first.gradient[name], again.gradient[name]) for name in first.gradient)
    trained(CHOSEN[:5])
    assert passes == [4, 1]
    trained(CHOSEN[:4], arch="qwen2")
    assert passes == [4, 1, 4]


def test_runs_with_one_reference_cache_share_the_scores_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    monkeypatch.setattr(
        "selfaug.before.token_weights.score_rows",
        lambda *a, **b: passes.append(1) or score_rows(*a, **b),  # type: ignore[func-returns-value]
    )
    both: dict[str, Any] = {"method": "selfaug+flow", "reference_cache": str(tmp_path / "cache")}
    apart = run(CHOSEN[:4], tmp_path / "apart", method="selfaug+flow")
    one = run(CHOSEN[:4], tmp_path / "one", **both)
    other = run(CHOSEN[:4], tmp_path / "other", **both)
    assert passes == [1, 1]
    assert not (tmp_path / "one" / FILE).exists()
    assert all(torch.equal(one.gradient[name], other.gradient[name]) for name in one.gradient)
    assert relative_distance(one.gradient, apart.gradient) < 1e-5


def test_a_row_that_was_not_scored_is_an_error() -> None:
    scores = BaseScores({})
    scores.add([1, 2, 3], torch.tensor([float("nan"), 0.5, float("nan")]))
    assert scores.of([1, 2, 3], torch.tensor([1])).tolist() == [0.5]
    scores.add([1, 2, 3], torch.tensor([float("nan"), float("nan"), 0.25]))
    assert scores.of([1, 2, 3], torch.tensor([1, 2])).tolist() == [0.5, 0.25]
    for ids, place in (([1, 2], 1), ([1, 2, 3], 0)):
        with pytest.raises(DataError, match="no row of the training data"):
            scores.of(ids, torch.tensor([place]))


def test_what_cannot_work_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="leaves none of the"):
        run(CHOSEN, tmp_path, method="stm", method_options="perplexity=1")
    from tests.models import lora_config

    pissa = lora_config("llama")
    pissa.init_lora_weights = "pissa"
    with pytest.raises(ConfigError, match="pissa"):
        run(CHOSEN, tmp_path, method="flow", peft_config=pissa)
