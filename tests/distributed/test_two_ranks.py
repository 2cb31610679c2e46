"""Do two ranks with unequal token counts have the gradient of a loop over all of their sequences?

Real processes over gloo, one launch for all cases; the oracle runs in this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from selfaug.planning.plan import draw
from tests.integration.steps import SEQUENCES, TOLERANCE, oracle_step, run
from tests.oracles.step import Sequence_, relative_distance

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

SEED = 7
TARGET: dict[str, Any] = {
    "align_target": 0.1, "align_fraction": 0.5, "per_device_train_batch_size": 1, "learning_rate": 0.02, "max_steps": 4
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "padding": {"settings": {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 1}},
    "accumulation": {"settings": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 5}},
    "checkpointing": {
        "settings": {
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 5,
            "gradient_checkpointing": True,
        }
    },
    "padding-free": {"settings": {"padding_free": True, "per_device_train_batch_size": 5}},
    "packing": {"settings": {"packing": True, "max_length": 48, "per_device_train_batch_size": 1}},
    "paper": {"settings": {"preset": "paper", "per_device_train_batch_size": 5}},
    "spare layer": {
        "settings": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 5},
        "spare": True,
    },
    "without logs": {"settings": {"per_device_train_batch_size": 5, "max_steps": 4, "logging_steps": 1000}},
    "drawn": {"settings": {"align_fraction": 0.5, "per_device_train_batch_size": 1, "max_steps": 4}},
    "drawn, packing": {
        "settings": {
            "align_fraction": 0.5,
            "packing": True,
            "max_length": 48,
            "per_device_train_batch_size": 1,
            "max_steps": 4,
        }
    },
    "drawn, cached": {
        # Each rank writes its share of the cache, and reads what the other wrote.
        "settings": {"align_fraction": 0.5, "per_device_train_batch_size": 1, "max_steps": 4},
        "cached": True,
    },
    "general texts": {
        # Two texts beside ten rows, with no label on either rank.
        "settings": {
            "align_data_share": 1 / 6,
            "align_fraction": 0.5,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 6,
            "max_steps": 3,
        },
        "texts": True,
    },
    "drawn, rank-keyed": {
        "settings": {"align_fraction": 0.5, "per_device_train_batch_size": 1, "max_steps": 4},
        "planted": True,
    },
    "evaluation": {
        "settings": {"per_device_train_batch_size": 5, "per_device_eval_batch_size": 2},
        "evaluated": ["multi-turn", "odd shapes"],
    },
    "evaluation, padding-free": {
        "settings": {"per_device_train_batch_size": 5, "per_device_eval_batch_size": 2, "padding_free": True},
        "evaluated": ["multi-turn", "odd shapes"],
    },
    "penalty and held responses": {
        "settings": {
            "method": "l2+asft",
            "method_options": {"update_weight": 0.5, "anchor": 0.3},
            "per_device_train_batch_size": 1,
        },
    },
    "weighted samples": {"settings": {"method": "flow", "per_device_train_batch_size": 1}},
    "held activations": {"settings": {"method": "align-v", "per_device_train_batch_size": 1}},
    "around each step": {
        "settings": {
            "method": "finch+psft+oplora",
            "method_options": {"renew_steps": 2, "kept_share": 0.25, "finch_most": 0.7},
            "per_device_train_batch_size": 1,
            "learning_rate": 0.02,
            "max_steps": 3,
        },
    },
    "target": {"settings": TARGET},
    "target, each rank its own": {"settings": TARGET, "planted": "shift"},
    "few": {
        # One rank has the sequence without a prompt or the one without a response; nothing is drawn on it.
        "kinds": ["odd shapes"],
        "count": 4,
        "settings": {"per_device_train_batch_size": 2},
    },
}
TEXTS = ((5, 8, 13, 21, 34, 55), (90, 80, 70, 60, 50, 40, 30, 20, 10))
END = 2  # trl ends a plain text with the tokenizer's end-of-text token
for _case in CASES.values():
    _case.setdefault("kinds", ["single-turn", "multi-turn"])
    _case.setdefault("count", 10)
    _case.setdefault("planted", False)
    _case["settings"] = {"gradient_accumulation_steps": 5, **_case["settings"], "seed": SEED}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case run on two ranks."""
    made = tmp_path_factory.mktemp("ranks")
    (made / "cases.json").write_text(json.dumps(CASES))
    texts = [{"text": " ".join(f"w{token}" for token in ids)} for ids in TEXTS]
    (made / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    script = Path(__file__).with_name("ranks.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(made / "cases.json"), str(made)], env=environment, capture_output=True, text=True, timeout=540
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return made


def load(folder: Path, name: str) -> list[dict[str, Any]]:
    ranks: list[dict[str, Any]] = [torch.load(folder / name / f"rank{rank}.pt") for rank in (0, 1)]
    assert ranks[0]["gradients"]
    for mine, theirs in zip(ranks[0]["gradients"], ranks[1]["gradients"], strict=True):
        assert relative_distance(mine, theirs) < 1e-12  # DDP left the same gradient on both
    return ranks


def seen(ranks: list[dict[str, Any]], step: int, known: tuple[Sequence_, ...]) -> tuple[Sequence_, ...]:
    """The sequences of a step over both ranks, with their labels: every one once."""
    labels = {tuple(ids): labels for ids, labels in known}
    ids = [document for rank in ranks for batch in rank["documents"][step] for document in batch]
    assert sorted(map(tuple, ids)) == sorted(labels), "a sequence is missing or was given twice"
    return tuple((each, labels[tuple(each)]) for each in ids)


def distances(folder: Path, name: str) -> list[float]:
    """For each step, how far the ranks' gradient is from the oracle's."""
    case, ranks = CASES[name], load(folder, name)
    known = tuple(sequence for kind in case["kinds"] for sequence in SEQUENCES[kind])[: case["count"]]
    if case.get("texts"):
        known += tuple(([*ids, END], [-100] * (len(ids) + 1)) for ids in TEXTS)
    fraction = case["settings"].get("align_fraction", 1.0)
    found = []
    for step, gradient in enumerate(ranks[0]["gradients"]):
        assert ranks[0]["response"][step] != ranks[1]["response"][step]  # token counts are unequal
        chosen = seen(ranks, step, known)
        drawn = tuple(i for i, (ids, _) in enumerate(chosen) if draw(SEED, step, torch.tensor(ids), fraction))
        settings: dict[str, Any] = {"align_fraction": fraction, "drawn": drawn}
        if case["settings"].get("preset") == "paper":
            settings |= {"alpha": 0.5, "direction": "tuned_to_base", "align_boundary": True}
        expected = oracle_step(chosen, **settings).gradient()[1]
        found.append(relative_distance(gradient, expected))
    return found


ONE_STEP = [n for n, case in CASES.items() if "method" in case["settings"] and "max_steps" not in case["settings"]]


@pytest.mark.parametrize("name", ONE_STEP)
def test_a_method_has_one_gradient_on_one_rank_and_on_two(name: str, folder: Path, tmp_path: Path) -> None:
    """The oracles of the methods stand beside their single-rank tests."""
    known = tuple(sequence for kind in CASES[name]["kinds"] for sequence in SEQUENCES[kind])[: CASES[name]["count"]]
    settings = {**CASES[name]["settings"], "gradient_accumulation_steps": 10}
    expected = run(known, tmp_path, **settings).gradient
    ranks = load(folder, name)
    assert relative_distance(oracle_step(known).gradient()[1], expected) > 0.01
    assert relative_distance(ranks[0]["gradients"][0], expected) < TOLERANCE[torch.float64]


def test_what_acts_around_each_step_acts_alike_on_one_rank_and_on_two(folder: Path, tmp_path: Path) -> None:
    """Loss of the step, copy of the weights and projection: the next steps' gradients depend on all three."""
    case = CASES["around each step"]
    known = tuple(sequence for kind in case["kinds"] for sequence in SEQUENCES[kind])[: case["count"]]
    settings = {**case["settings"], "gradient_accumulation_steps": 10}
    expected = run(known, tmp_path / "one", **settings).gradients
    ranks = load(folder, "around each step")
    assert len(expected) == len(ranks[0]["gradients"]) == 3
    for step, (one, two) in enumerate(zip(expected, ranks[0]["gradients"], strict=True)):
        assert ranks[0]["response"][step] != ranks[1]["response"][step]
        assert relative_distance(two, one) < TOLERANCE[torch.float64]
    for left_out in ("finch+psft", "finch+oplora", "psft+oplora"):
        options = {n: v for n, v in settings["method_options"].items() if _option_of(n) in left_out}
        other = run(known, tmp_path / left_out, **{**settings, "method": left_out, "method_options": options}).gradients
        assert relative_distance(other[2], expected[2]) > 1e-3


def test_a_target_finds_one_weight_on_one_rank_and_on_two(folder: Path, tmp_path: Path) -> None:
    case = CASES["target"]
    known = tuple(sequence for kind in case["kinds"] for sequence in SEQUENCES[kind])[: case["count"]]
    ran = run(known, tmp_path / "one", **{**case["settings"], "gradient_accumulation_steps": 10})
    two, own = load(folder, "target"), load(folder, "target, each rank its own")
    assert ran.trainer is not None
    alphas = [entry["alpha"] for entry in ran.trainer.state.log_history if "alpha" in entry][:4]
    assert abs(alphas[-1] / alphas[0] - 1) > 0.05, "the weight moves"
    assert two[0]["alphas"] == two[1]["alphas"]
    assert two[0]["alphas"][:4] == pytest.approx(alphas, rel=TOLERANCE[torch.float64])
    assert own[0]["alphas"] != own[1]["alphas"]
    for step in range(4):
        assert relative_distance(two[0]["gradients"][step], ran.gradients[step]) < TOLERANCE[torch.float64]
    assert relative_distance(own[0]["gradients"][3], ran.gradients[3]) > 100 * TOLERANCE[torch.float64]


def _option_of(name: str) -> str:
    return {"renew_steps": "psft", "kept_share": "oplora", "finch_most": "finch"}[name]


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, case in CASES.items()
        if not (case["planted"] or case.get("spare") or {"method", "align_target"} & case["settings"].keys())
    ],
)
def test_two_ranks_equal_the_oracle(name: str, folder: Path) -> None:
    found = distances(folder, name)
    assert len(found) == CASES[name]["settings"].get("max_steps", 1)
    assert max(found) < TOLERANCE[torch.float64]


def test_a_draw_keyed_by_rank_is_seen(folder: Path) -> None:
    """The planted error: the same comparison fails."""
    assert max(distances(folder, "drawn, rank-keyed")) > 100 * TOLERANCE[torch.float64]


def test_accumulation_and_layout_give_the_same_gradient_on_two_ranks(folder: Path) -> None:
    reference = load(folder, "padding")[0]["gradients"][0]
    for name in ("accumulation", "checkpointing", "padding-free", "packing"):
        assert relative_distance(load(folder, name)[0]["gradients"][0], reference) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "evaluated" in case])
def test_an_evaluation_counts_every_row_once(name: str, folder: Path) -> None:
    """The last batches of two ranks are filled up, and what fills them counts for nothing."""
    held_out = tuple(sequence for kind in CASES[name]["evaluated"] for sequence in SEQUENCES[kind])
    assert len(held_out) % 4, "no batch has to be filled up"
    nll = oracle_step(held_out, alpha=0.0).gradient()[0]
    total = oracle_step(held_out, alpha=2.0).gradient()[0]
    for rank in load(folder, name):
        assert rank["evaluation"]["eval_nll"] == pytest.approx(nll, rel=1e-6)
        assert rank["evaluation"]["eval_alignment"] == pytest.approx((total - nll) / 2.0, rel=1e-6)
        assert rank["evaluation"]["eval_loss"] == pytest.approx(total, rel=1e-6)


def test_ddp_searches_for_unused_weights_only_where_there_are_some(folder: Path) -> None:
    """Under DDP, transformers has every adapter searched; a search less must change nothing (the tests above)."""
    assert CASES["checkpointing"]["settings"]["gradient_checkpointing"]
    for name in ("padding", "accumulation", "checkpointing", "packing", "held activations", "weighted samples"):
        assert [rank["searches"] for rank in load(folder, name)] == [False, False], name
    spare = load(folder, "spare layer")
    assert [rank["searches"] for rank in spare] == [True, True]
    gradient = spare[0]["gradients"][0]
    unused = {name: gradient.pop(name) for name in list(gradient) if "spare" in name}
    assert len(unused) == 2
    assert not any(bool(g.any()) for g in unused.values())
    assert relative_distance(gradient, load(folder, "accumulation")[0]["gradients"][0]) < TOLERANCE[torch.float64]


def test_a_step_reduces_its_counts_and_its_check_once_without_the_devices(folder: Path) -> None:
    for rank in load(folder, "without logs"):
        assert rank["reductions"] == ["hosts"] * 4  # two steps of two
