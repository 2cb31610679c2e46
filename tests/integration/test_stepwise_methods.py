"""Do methods that act around each optimiser step train as a loop in plain code, from the first step to the last?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor

from selfaug.common.errors import ConfigError
from selfaug.methods import get_method
from selfaug.methods.adapters import check_weights
from selfaug.model.libraries import lora_pairs
from selfaug.training.checkpoints import METHOD_FILE
from selfaug.training.config import SelfAugConfig
from selfaug.training.sharding import Sharding, check_sharding
from selfaug.training.trainer import SelfAugTrainer
from tests.integration.steps import SEQUENCES
from tests.models import lora_config, tiny, tiny_tokenizer
from tests.oracles import training_loop as oracle

CHOSEN = SEQUENCES["single-turn"][:3] + SEQUENCES["multi-turn"][:1]
STEPS, RATE = 5, 0.02
# float64 on both sides, and AdamW's division by the root of second moments near 0 magnifies roundings.
CLOSE = 1e-6


def make(folder: Path, method: str, options: Any = None, **changes: Any) -> SelfAugTrainer:
    """A fresh adapter; every step sees all sequences."""
    settings = {
        "output_dir": str(folder), "method": method, "method_options": options, "max_steps": STEPS, "save_steps": 3,
        "learning_rate": RATE, "weight_decay": 0.0, "max_grad_norm": 0.0, "optim": "adamw_torch", "bf16": False,
        "gradient_checkpointing": False, "report_to": [], "disable_tqdm": True, "use_cpu": True, "max_length": 256,
        "lr_scheduler_type": "constant", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
        "logging_steps": 1, "save_strategy": "no", **changes,
    }  # fmt: skip
    rows = [{"input_ids": list(ids), "labels": list(labels)} for ids, labels in CHOSEN]
    return SelfAugTrainer(
        tiny("llama"),
        SelfAugConfig(**settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
        peft_config=lora_config("llama"),
    )


def factors(trainer: SelfAugTrainer) -> oracle.Factors:
    names = {id(module): name for name, module in trainer.base_model.named_modules()}
    return {
        f"{names[id(pair.layer)]}.weight": (pair.A.detach().clone(), pair.B.detach().clone())
        for pair in lora_pairs(trainer.base_model)
    }


def _layer(name: str) -> str:
    """A parameter's layer, as :func:`factors` names it."""
    return f"{name.removeprefix('earlier.').partition('.lora_')[0]}.weight"


def update(trainer: SelfAugTrainer) -> dict[str, Tensor]:
    return {name: 2.0 * B @ A for name, (A, B) in factors(trainer).items()}


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    away = sum(((found[name] - expected[name]) ** 2).sum() for name in found)
    return float((away / sum((each**2).sum() for each in expected.values())).sqrt())


def sides(count: float) -> dict[str, tuple[Tensor, Tensor]]:
    model = tiny("llama")
    return {
        name: oracle.strongest(p.detach(), max(1, round(count * min(p.shape))))
        for name, p in model.named_parameters()
        if name.endswith("proj.weight")
    }


def smoothed(power: float, most: float, losses: list[float]) -> float:
    mean = losses[0]
    for loss in losses[1:]:
        mean = 0.9 * mean + 0.1 * loss
    return float(min(mean ** (-power / 2), most))


PSFT = {"clip_range": 0.3, "renew_steps": 3}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "finch": ({"finch_power": 1.5}, {"factor": lambda losses: smoothed(1.5, 5.0, losses)}),
    "psft": (PSFT, {"clip": 0.3, "renew": 3}),
    "oplora": ({"kept_share": 0.25}, {"sides": sides(0.25)}),
}
# One plausible mistake each: another average, p_old that is never renewed, one side alone.
PLANTED: dict[str, dict[str, Any]] = {
    "finch": {"factor": lambda losses: smoothed(1.5, 5.0, losses[-1:])},
    "psft": {"clip": 0.3, "renew": STEPS},
    "oplora": {"sides": {name: (torch.eye(len(P)).double(), Q) for name, (P, Q) in sides(0.25).items()}},
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "accumulated": {},
    "packed": {
        "packing": True, "max_length": 64, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 99,
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", CASES)
def test_a_training_is_that_of_the_loop(method: str, layout: str, tmp_path: Path) -> None:
    options, changed = CASES[method]
    trainer = make(tmp_path, method, options, **LAYOUTS[layout])
    start = factors(trainer)
    trainer.train()
    found = update(trainer)

    def loop(**given: Any) -> dict[str, Tensor]:
        return oracle.train(tiny("llama"), start, 2.0, CHOSEN, STEPS, RATE, **given)[0]

    assert distance(found, loop(**changed)) < CLOSE
    if layout == "accumulated":
        assert distance(found, loop()) > 0.01  # plain fine-tuning
        assert distance(found, loop(**PLANTED[method])) > 0.01


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("finch", "finch_power=0"),
        ("psft", "renew_steps=1"),
        ("oplora", "kept_share=0"),
        ("intruder", "intruder_scale=1"),
    ],
)
def test_without_strength_a_training_is_plain_to_the_bit(method: str, options: str, tmp_path: Path) -> None:
    plain, off = make(tmp_path, "sft", max_steps=2), make(tmp_path, method, options, max_steps=2)
    plain.train()
    off.train()
    assert all(torch.equal(update(off)[name], one) for name, one in update(plain).items())


ALL = "finch+psft+oplora"
OPTIONS = {name: value for options, _ in CASES.values() for name, value in options.items()}


def test_all_at_once_resume_in_the_middle(tmp_path: Path) -> None:
    """The smoothed loss, and p_old of an earlier step, come back with the checkpoint."""
    method, options = ALL, {**OPTIONS, "renew_steps": 2}  # p_old is that of step 2, and the checkpoint of step 3
    whole = make(tmp_path / "whole", method, options)
    whole.train()
    stopped = make(tmp_path / "two", method, options, max_steps=3, save_strategy="steps")
    stopped.train()
    again = make(tmp_path / "two", method, options, save_strategy="steps")
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == STEPS
    assert all(torch.equal(update(again)[name], one) for name, one in update(whole).items())
    kept = load_file(tmp_path / "two" / "checkpoint-3" / METHOD_FILE)
    assert len(kept) == 1 + 2 * len(lora_pairs(whole.base_model))
    del kept["rate.nll"]
    assert any(not torch.equal(one, factors(stopped)[_layer(n)]["lora_B" in n]) for n, one in kept.items())


def test_the_strongest_directions_of_the_weights_stay(tmp_path: Path) -> None:
    """(W + ΔW) v = σ u for the strongest triples, to rounding; plain fine-tuning moves them."""
    kept, plain = make(tmp_path, "oplora", {"kept_share": 0.25}), make(tmp_path, "sft")
    start = update(kept)
    assert all(not each.any() for each in start.values())

    def moved(trainer: SelfAugTrainer) -> float:
        trainer.train()
        found = update(trainer)
        most = 0.0
        for name, p in tiny("llama").named_parameters():
            if name in found:
                U, S, Vh = torch.linalg.svd(p.detach(), full_matrices=False)
                k = round(0.25 * len(S))
                most = max(
                    most, float((found[name] @ Vh[:k].T).abs().max()), float((U[:, :k].T @ found[name]).abs().max())
                )
        return most

    assert moved(kept) < 1e-12
    assert moved(plain) > 0.01
    assert max(float(each.abs().max()) for each in update(kept).values()) > 0.01


def test_with_the_prompt_held_all_act(tmp_path: Path) -> None:
    both = make(tmp_path / "both", f"selfaug+{ALL}", OPTIONS, max_steps=2)
    held = make(tmp_path / "held", "selfaug", max_steps=2)
    alone = make(tmp_path / "alone", ALL, OPTIONS, max_steps=2)
    for trainer in (both, held, alone):
        trainer.train()
    assert any("alignment" in entry for entry in both.state.log_history)
    assert distance(update(both), update(held)) > 1e-3
    assert distance(update(both), update(alone)) > 1e-3


def test_the_scheduler_does_not_see_the_factor(tmp_path: Path) -> None:
    trainer = make(tmp_path, "finch", lr_scheduler_type="linear")
    trainer.train()
    shown = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert shown == pytest.approx([RATE * (1 - step / STEPS) for step in range(STEPS)])


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    for pair in ("psft+dft", "oplora+corda", "full+oplora", "osf+l2", "osf+corda"):
        with pytest.raises(ConfigError):
            get_method(pair)
    pairs = lora_pairs(make(tmp_path, "oplora").base_model)
    for kind in ("fsdp2", "zero2"):
        for method in ("oplora", "psft", "osf", "intruder"):
            args = SelfAugConfig(output_dir="unused", method=method, bf16=False, report_to="none")
            with pytest.raises(ConfigError, match="FSDP and ZeRO split"):
                check_sharding(Sharding(kind), args, None, tied=False)
    assert pairs[0].W is not None
    with pytest.raises(ConfigError, match="quantised"):
        check_weights("oplora", [pairs[0]._replace(W=pairs[0].W.to(torch.uint8))])
    with pytest.raises(ConfigError, match="another kind"):
        check_weights("oplora", [pairs[0]._replace(W=None)])
