"""Does the study of partial alignment call equivalent only what lies within its margin?"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SEEDS, ITEMS, TOKENS = 5, 40, 100


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    monkeypatch.setattr(importlib.import_module("paired"), "RESAMPLES", 400)
    return importlib.import_module("equivalence")


def runs(study: Any, shift: float, by_seed: float = 0.0, by_item: float = 0.0) -> dict[str, list[dict[str, Any]]]:
    """All's losses differ widely by seed and item; a part's are all's, plus a shift that varies a little."""
    draw = np.random.default_rng(0)
    level_SI = 2 + draw.normal(size=(SEEDS, 1)) + draw.normal(size=(1, ITEMS))
    moves = np.linspace(-1, 1, SEEDS)[:, None] * by_seed + np.linspace(-1, 1, ITEMS) * by_item
    nats = {study.ALL: level_SI, **dict.fromkeys(study.PARTS, level_SI + shift + moves)}
    return {
        name: [{"general": [(float(x) * TOKENS, TOKENS) for x in row]} for row in values]
        for name, values in nats.items()
    }


def found(study: Any, made: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    base = {what: [(1.0, 1)] * ITEMS for what in ("general", "answers")}
    for run in (run for of in made.values() for run in of):
        run["answers"] = run["general"]
    return study.compare(base, made, "general")[study.PARTS[0]]


@pytest.mark.parametrize(
    ("shift", "by_seed", "by_item", "verdict"),
    [
        (0.0, 0.0, 0.0, "equivalent"),
        (0.01, 0.005, 0.005, "equivalent"),
        (0.05, 0.005, 0.005, "worse"),
        (-0.05, 0.005, 0.005, "better"),
        (0.02, 0.005, 0.005, "not shown"),
        (0.0, 0.06, 0.0, "not shown"),  # seeds disagree
        (0.0, 0.03, 0.0, "not shown"),  # less so: a bootstrap of five alone would call it equivalent
        (0.0, 0.0, 0.3, "not shown"),  # stories disagree, which t over seeds does not see
    ],
)
def test_verdict_follows_the_planted_difference(
    study: Any, shift: float, by_seed: float, by_item: float, verdict: str
) -> None:
    got = found(study, runs(study, shift, by_seed, by_item))
    assert got["mean"] == pytest.approx(shift, abs=1e-9)
    assert got["verdict"] == verdict


def test_pairs_cancel_what_seeds_and_stories_share(study: Any) -> None:
    got = found(study, runs(study, 0.01))
    # The losses themselves spread by more than a nat; a bootstrap that broke the pairs would show it.
    for low, high in [*got["bootstrap"].values(), *got["student"].values()]:
        assert low == pytest.approx(0.01, abs=1e-9)
        assert high == pytest.approx(0.01, abs=1e-9)


def test_student_interval_is_the_textbooks(study: Any) -> None:
    # Mean 3, standard error sqrt(2.5 / 5); t with 4 degrees of freedom leaves 5 % above 2.131847.
    low, high = study.over_seeds([1.0, 2.0, 3.0, 4.0, 5.0], 0.90)
    half = 2.131847 * 0.5**0.5
    assert (low, high) == pytest.approx((3 - half, 3 + half), abs=1e-5)


def test_one_seed_shows_nothing(study: Any) -> None:
    one = {name: of[:1] for name, of in runs(study, 0.0).items()}
    assert found(study, one)["verdict"] == "not shown"
