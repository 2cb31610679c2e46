"""Does a probed training equal one that is not probed, to the bit, and does its limit stop it or take it back?"""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from selfaug.common.errors import ConfigError, DataError
from selfaug.training import probe as probe_module
from selfaug.training.config import SelfAugConfig
from selfaug.training.trainer import SelfAugTrainer
from tests.integration import small

ANSWERS = "generated/probe.jsonl"


def prompts(folder: Path) -> str:
    """A file of prompts of two kinds: conversations whose answer is not read, and a record."""
    file = folder.parent / "prompts.jsonl"
    asked = ["w1 w2 w3", "w40 w50 w60 w70", "w5 w5"]
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": words}, {"role": "assistant", "content": "w90 unread"}]}
        for words in asked
    ]
    rows.append({"question": "w7 w8", "documents": [{"text": "w9 w10 w11"}], "answer": "w90 unread"})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def trained(folder: Path, *, draws: bool = True, resume: str | None = None, **changes: Any) -> SelfAugTrainer:
    """Train six steps with dropout; with ``draws`` each measurement of the probe uses up random numbers."""
    settings: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": 6, "learning_rate": 3e-3, "report_to": "none", "bf16": False,
        "use_cpu": True, "gradient_checkpointing": False, "disable_tqdm": True, "save_strategy": "steps",
        "save_steps": 3, "max_length": 128, "per_device_train_batch_size": 2, "logging_steps": 1,
    }  # fmt: skip
    trainer = SelfAugTrainer(
        small.model(),
        SelfAugConfig(**{**settings, **changes}),
        train_dataset=Dataset.from_list(small.rows(18)),
        processing_class=small.tokenizer(),
        peft_config=small.lora(lora_dropout=0.3),
    )
    assert any(isinstance(m, torch.nn.Dropout) and m.p == 0.3 for m in trainer.model.modules()), "no dropout"
    if trainer._probe is not None and draws:
        measure = trainer._probe._measure

        def drawing() -> Any:
            random.random(), np.random.rand(), torch.rand(3)
            return measure()

        trainer._probe._measure = drawing
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def state(trainer: SelfAugTrainer) -> dict[str, Any]:
    """Everything that a next step would depend on."""
    optimiser = {
        f"{i}.{name}": value
        for i, entry in trainer.optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }
    drawn = {"python": random.getstate(), "numpy": str(np.random.get_state()), "torch": torch.get_rng_state()}
    modes = {name: module.training for name, module in trainer.model.named_modules()}
    return {**dict(trainer.model.named_parameters()), **optimiser, **drawn, "modes": modes}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(v, other[k]) if isinstance(v, torch.Tensor) else v == other[k] for k, v in one.items())


def probes(trainer: SelfAugTrainer) -> list[tuple[int, float]]:
    return [(e["step"], e["probe_kl"]) for e in trainer.state.log_history if "probe_kl" in e]


def losses(trainer: SelfAugTrainer) -> list[float]:
    return [e["loss"] for e in trainer.state.log_history if "loss" in e]


@pytest.fixture(scope="module")
def unprobed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[float]]:
    trainer = trained(tmp_path_factory.mktemp("unprobed") / "run")
    assert not probes(trainer)
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state(trainer).items()}, losses(trainer)


def test_a_watching_probe_changes_no_bit(unprobed: tuple[dict[str, Any], list[float]], tmp_path: Path) -> None:
    trainer = trained(tmp_path / "run", probe=prompts(tmp_path / "run"), probe_steps=2)
    found = probes(trainer)
    assert [step for step, _ in found] == [0, 2, 4, 6]
    assert found[0][1] == 0, "a fresh adapter is the base"
    assert all(kl > 1e-4 for _, kl in found[1:]), "the adapter did not move"
    assert losses(trainer) == unprobed[1]
    assert same(state(trainer), unprobed[0])
    answers = (tmp_path / "run" / ANSWERS).read_text()
    assert answers.count("\n") == 4
    assert "unread" not in answers


@pytest.mark.nightly
def test_a_probe_that_uses_up_random_numbers_would_be_seen(
    unprobed: tuple[dict[str, Any], list[float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe_module, "random_state_kept", contextlib.nullcontext)
    trainer = trained(tmp_path / "run", probe=prompts(tmp_path / "run"), probe_steps=2)
    assert losses(trainer) != unprobed[1]
    assert not same(state(trainer), unprobed[0])


def test_a_resumed_run_has_the_same_bits_and_the_same_history(
    unprobed: tuple[dict[str, Any], list[float]], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    whole = trained(folder, probe=prompts(folder), probe_steps=1)
    written = (folder / "generated/samples-0.jsonl").read_bytes()
    again = trained(folder, probe=prompts(folder), probe_steps=1, resume=str(folder / "checkpoint-3"))
    assert [step for step, _ in probes(again)] == [0, 1, 2, 3, 4, 5, 6]
    assert probes(again) == probes(whole)
    assert same(state(again), unprobed[0])
    assert (folder / "generated/samples-0.jsonl").read_bytes() == written, "the base answered again"


def test_beyond_the_limit_training_stops_or_goes_back(tmp_path: Path) -> None:
    file = prompts(tmp_path / "watched")
    watched = dict(probes(trained(tmp_path / "watched", probe=file, probe_steps=1)))
    assert watched[1] < watched[2] < watched[3], "the probe does not rise, so that no limit lies between"
    limit = (watched[2] + watched[3]) / 2
    common = {"probe": file, "probe_steps": 1, "probe_limit": limit, "save_steps": 100, "save_total_limit": 1}
    stopped = trained(tmp_path / "stopped", **common)
    assert stopped.state.global_step == 3
    assert stopped.probe_outcome == {
        "step": 3, "probe_kl": watched[3], "probe_limit": limit, "restored_step": None
    }  # fmt: skip
    assert (tmp_path / "stopped/checkpoint-3").is_dir()
    resumed = trained(tmp_path / "stopped", **common, resume=str(tmp_path / "stopped/checkpoint-3"))
    assert resumed.state.global_step == 3, "killed between its last checkpoint and its end, it goes no further"
    assert resumed.probe_outcome == stopped.probe_outcome
    back = trained(tmp_path / "back", **common, probe_action="restore")
    assert back.probe_outcome["restored_step"] == 2
    assert dict(probes(back)) == {step: watched[step] for step in range(4)}
    assert [folder.name for folder in (tmp_path / "back").glob("checkpoint-*")] == ["checkpoint-2"]
    kept = load_file(tmp_path / "back/checkpoint-2/adapter_model.safetensors")
    now = {n.replace(".default", ""): p for n, p in back.model.named_parameters() if "lora_" in n}
    then = {n.replace(".default", ""): p for n, p in stopped.model.named_parameters() if "lora_" in n}
    assert kept.keys() == now.keys()
    assert all(torch.equal(kept[name], now[name]) for name in kept)
    assert not all(torch.equal(kept[name], then[name]) for name in kept)
    assert probe_module.summary(back._measure_probe())["probe_kl"] == watched[2]


@pytest.mark.nightly
def test_without_a_probe_within_the_limit_nothing_is_gone_back_to(tmp_path: Path) -> None:
    limits = {"probe": prompts(tmp_path / "run"), "probe_limit": 1e-9, "probe_action": "restore"}
    with pytest.raises(ConfigError, match="broken at the first probe, after step 3"):
        trained(tmp_path / "run", **limits)


@pytest.mark.nightly
def test_an_adapter_that_breaks_the_limit_before_the_first_step_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SelfAugTrainer, "_measure_probe", lambda self: [(3.0, 10), (4.0, 10)])
    with pytest.raises(ConfigError, match="is broken before the first step"):
        trained(tmp_path / "run", draws=False, probe=prompts(tmp_path / "run"), probe_limit=0.2)


@pytest.mark.parametrize("prompt", ["w1 w2 w3", [{"role": "user", "content": "w1 w2 w3"}]])
def test_a_file_of_prompts_alone_asks_what_conversations_ask(tmp_path: Path, prompt: Any) -> None:
    file = tmp_path / "alone.jsonl"
    file.write_text(json.dumps({"prompt": prompt}) + "\n")
    (tmp_path / "run").mkdir()
    (alone,) = trained(tmp_path / "a", probe=str(file), max_steps=1)._probe_rows
    first, *_ = trained(tmp_path / "b", probe=prompts(tmp_path / "run"), max_steps=1)._probe_rows
    assert alone == first
    for wrong in (3, [], [{"role": "user"}]):
        file.write_text(json.dumps({"prompt": wrong}) + "\n")
        with pytest.raises(DataError, match=r"field 'prompt"):
            trained(tmp_path / "c", probe=str(file), max_steps=1)


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({"question": "w1", "documents": [], "answer": "w2", "prompt": "w3"}, "w1"),
        ({"prompt": "w3", "chosen": "w4"}, "w3"),
    ],
)
def test_a_prompt_beside_a_known_row_s_own_fields_is_not_what_is_asked(
    tmp_path: Path, row: dict[str, Any], asked: str
) -> None:
    from selfaug.before.probe_rows import _items

    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    (item,) = _items(file)
    assert (item["prompt"] if isinstance(item, dict) else item.question) == asked


@pytest.mark.nightly
def test_the_answers_are_the_base_s_own_greedy_ones(tmp_path: Path) -> None:
    trainer = trained(tmp_path / "run", probe=prompts(tmp_path / "run"), max_steps=1)
    base, tokenizer = small.model(), small.tokenizer()
    assert len(trainer._probe_rows) == 4
    for row in trainer._probe_rows:
        start = sum(label == -100 for label in row["labels"])
        ids = row["input_ids"][:start]
        with torch.no_grad():
            for _ in range(64):
                ids.append(int(base(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
                if ids[-1] == tokenizer.eos_token_id:
                    break
        answer = row["input_ids"][start:]
        assert len(answer) > 1
        # A special token in the middle begins another turn, and the answer is over.
        ended = len(answer) < 64
        assert ids[start : start + len(answer) - ended] == answer[: len(answer) - ended]
        assert not ended or ids[start + len(answer) - 1] in tokenizer.all_special_ids
