"""Does the probe measure KL(base ‖ tuned) on the answers, and is what cannot be meant refused by name?"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfaug.common.errors import ConfigError, DataError
from selfaug.reference.adapter import BaseReference
from selfaug.training.config import SelfAugConfig
from selfaug.training.probe import check_probe_base, kl_rows, random_state_kept, summary
from selfaug.training.sharding import Sharding, check_sharding
from tests.models import VOCAB, tiny, with_lora

ROWS = [
    {"input_ids": [5, 6, 7, 8, 9, 10], "labels": [-100, -100, 7, 8, 9, 10]},
    {"input_ids": [20, 21, 22], "labels": [-100, -100, 22]},
    {"input_ids": [50, 40, 30, 20, 10, 9, 8, 7, 6], "labels": [-100] * 5 + [9, 8, 7, 6]},
]


def by_hand(row: dict[str, list[int]], first: int = 0) -> float:
    """The sum of two whole models, position by position; ``first`` moves the positions."""
    base, tuned = tiny("llama"), with_lora(tiny("llama"))
    ids = torch.tensor([row["input_ids"]])
    with torch.no_grad():
        q, p = (model(input_ids=ids).logits[0].log_softmax(-1) for model in (base, tuned))
    total = 0.0
    for t, label in enumerate(row["labels"]):
        if label != -100:
            at = t - 1 + first
            total += sum(float(q[at, v].exp() * (q[at, v] - p[at, v])) for v in range(VOCAB))
    return total


def test_the_probe_is_the_kl_of_two_models_on_the_answer_tokens() -> None:
    tuned = with_lora(tiny("llama")).train()
    found = kl_rows(tuned.get_base_model(), BaseReference(), ROWS)
    assert [tokens for _, tokens in found] == [4, 1, 4]
    expected = [by_hand(row) for row in ROWS]
    assert min(expected) > 1e-3, "base and tuned do not differ"
    assert [kl for kl, _ in found] == pytest.approx(expected, rel=1e-9)
    planted = [by_hand(row, first=1) for row in ROWS[2:]]
    assert found[2][0] != pytest.approx(planted[0], rel=1e-3)
    assert kl_rows(tuned.get_base_model(), BaseReference(), ROWS, single_rows=True) == [
        (pytest.approx(kl, rel=1e-9), tokens) for kl, tokens in found
    ]
    assert all(module.training for module in tuned.modules()), "a module's mode was not restored"


def test_the_summary_is_a_ratio_of_sums_with_an_interval_over_items() -> None:
    pick = random.Random(3)
    items = [(pick.uniform(0.1, 3.0), pick.randint(1, 20)) for _ in range(40)]
    found = summary(items)
    assert found["probe_kl"] == pytest.approx(sum(kl for kl, _ in items) / sum(n for _, n in items))
    # The standard error of a ratio, linearised: an approximation of another kind.
    mean, total = found["probe_kl"], sum(n for _, n in items)
    stderr = sum((kl - mean * n) ** 2 for kl, n in items) ** 0.5 / total
    assert found["probe_kl_high"] - found["probe_kl_low"] == pytest.approx(2 * 1.96 * stderr, rel=0.15)
    assert found["probe_kl_low"] < mean < found["probe_kl_high"]
    assert summary(items) == found
    assert summary([(0.5, 5)]) == {"probe_kl": 0.1}


def test_random_states_are_kept() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with random_state_kept():
        assert draw() == expected
        assert draw() != expected
    assert draw() == expected


# ---- refusals ---------------------------------------------------------------------------------------------------


def config(folder: Path, **settings: Any) -> SelfAugConfig:
    return SelfAugConfig(output_dir=str(folder), bf16=False, use_cpu=True, report_to=[], **settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"probe_limit": 0.1}, "probe_limit=0.1 has no effect without probe"),
        ({"probe_steps": 5}, "probe_steps=5 has no effect without probe"),
        ({"probe_action": "restore"}, "no effect without probe and probe_limit"),
        ({"probe": "general", "probe_action": "restore"}, "there is no limit"),
        ({"probe": "general", "probe_action": "undo"}, "'undo' is not known"),
        ({"probe": "general", "probe_limit": 0.0}, "no largest KL"),
        ({"probe": "general", "probe_limit": float("nan")}, "no largest KL"),
        ({"probe": "general", "probe_steps": 0}, "no number of steps"),
        ({"probe": "no/such/file.jsonl"}, "no/such/file.jsonl"),
        ({"probe": "general", "reference": "initial"}, "is not the base"),
        ({"probe": "general", "method": "pissa"}, "is not the base"),
        (
            {"probe": "general", "probe_limit": 0.1, "probe_action": "restore", "load_best_model_at_end": True}
            | {"eval_strategy": "steps", "save_strategy": "steps"},
            "both say which checkpoint",
        ),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match=says):
        config(tmp_path, **settings)


@pytest.mark.parametrize("kind", ["fsdp2", "zero1", "zero2", "zero3"])
def test_split_weights_are_refused_from_settings_alone(kind: str, tmp_path: Path) -> None:
    check_sharding(Sharding(kind), config(tmp_path), None, tied=False)
    with pytest.raises(ConfigError, match="FSDP and ZeRO split it up"):
        check_sharding(Sharding(kind), config(tmp_path, probe="general"), None, tied=False)
    check_sharding(Sharding("ddp"), config(tmp_path, probe="general"), None, tied=False)


def test_full_fine_tuning_needs_a_reference_model(tmp_path: Path) -> None:
    check_probe_base(config(tmp_path, probe="general"), adapted=True)
    check_probe_base(config(tmp_path, probe="general", reference="some/model"), adapted=False)
    with pytest.raises(ConfigError, match="full fine-tuning holds none"):
        check_probe_base(config(tmp_path, probe="general", method="full"), adapted=False)
