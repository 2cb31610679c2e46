"""Do methods that act on the weights act once a step, at the end, or on the learning rate, and on nothing else?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from selfaug.before.fisher import FILE as FISHER
from selfaug.before.fisher import fisher_diagonal
from selfaug.common.errors import ConfigError
from selfaug.model.libraries import lora_pairs
from selfaug.training.config import SelfAugConfig
from selfaug.training.trainer import SelfAugTrainer
from tests.integration.steps import SEQUENCES, TOLERANCE, Ran, run
from tests.models import adapter_name, lora_config, tiny, tiny_tokenizer, with_lora
from tests.oracles import parameters as oracle
from tests.oracles.step import Gradients, relative_distance

CHOSEN = SEQUENCES["single-turn"][:3] + SEQUENCES["multi-turn"][:1]


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run(CHOSEN, tmp_path_factory.mktemp("sft"), method="sft")


def slopes(method: str) -> tuple[float, Gradients]:
    """The penalty of the perturbed adapter and its slope, layer by layer from the loops."""
    model = with_lora(tiny("llama"))
    names = {id(p): adapter_name(name) for name, p in model.named_parameters()}
    total, found, pairs = 0.0, {}, lora_pairs(model)
    for pair in pairs:
        if method == "l2":
            value, slope_A, slope_B = oracle.squared_update(pair.A.tolist(), pair.B.tolist(), pair.scale)
        else:
            assert pair.W is not None
            value, slope_A = oracle.overlap(pair.W.tolist(), pair.A.tolist())
            value, slope_A = value / len(pairs), [[x / len(pairs) for x in row] for row in slope_A]
            slope_B = [[0.0] * pair.B.shape[1]] * pair.B.shape[0]
        total += value
        found[names[id(pair.A)]] = torch.tensor(slope_A, dtype=torch.float64)
        found[names[id(pair.B)]] = torch.tensor(slope_B, dtype=torch.float64)
    return total, found


@pytest.mark.parametrize("size", [1, 4], ids=["four micro-batches", "one micro-batch"])
@pytest.mark.parametrize(("method", "option"), [("l2", "update_weight"), ("orthogonal", "overlap_weight")])
def test_a_penalty_counts_once_a_step(method: str, option: str, size: int, plain_run: Ran, tmp_path: Path) -> None:
    ran = run(CHOSEN, tmp_path, method=method, method_options={option: 0.5}, per_device_train_batch_size=size)
    value, slope = slopes(method)
    expected = {name: g + 0.5 * slope[name] for name, g in plain_run.gradient.items()}
    assert relative_distance(plain_run.gradient, expected) > 0.01
    assert relative_distance(ran.gradient, expected) < TOLERANCE[torch.float64]
    assert ran.losses == pytest.approx([plain_run.losses[0] + 0.5 * value], rel=1e-5)
    assert ran.trainer is not None
    logged = next(e for e in ran.trainer.state.log_history if "nll" in e)
    assert logged["squared_update" if method == "l2" else "overlap"] == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("given", [("l2", "update_weight=0"), ("orthogonal", "overlap_weight=0"), ("low-lr", None)])
def test_without_a_penalty_a_step_is_the_base_lines(
    given: tuple[str, str | None], plain_run: Ran, tmp_path: Path
) -> None:
    ran = run(CHOSEN, tmp_path, method=given[0], method_options=given[1])
    assert all(torch.equal(ran.gradient[name], plain_run.gradient[name]) for name in plain_run.gradient)


def trained(folder: Path, method: str, options: Any = None, *, model: Any = None, peft: bool = True) -> Any:
    """Two steps of a real run from a fresh adapter; its trainer."""
    args = SelfAugConfig(
        output_dir=str(folder), method=method, method_options=options, max_steps=2, learning_rate=0.05, bf16=False,
        gradient_checkpointing=False, save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, max_length=256,
        lr_scheduler_type="constant", per_device_train_batch_size=4,
    )  # fmt: skip
    rows = Dataset.from_list([{"input_ids": list(ids), "labels": list(labels)} for ids, labels in CHOSEN])
    trainer = SelfAugTrainer(
        model or tiny("llama"),
        args,
        train_dataset=rows,
        processing_class=tiny_tokenizer(),
        peft_config=lora_config("llama") if peft else None,
    )
    trainer.train()
    return trainer


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=torch.tensor([list(CHOSEN[0][0])])).logits
    return found


def test_wise_ft_at_0_is_the_base_and_at_1_the_tuned_model_to_the_bit(tmp_path: Path) -> None:
    base, tuned = logits(tiny("llama")), logits(trained(tmp_path / "sft", "sft").model)
    assert (tuned - base).abs().max() > 0.01
    nothing, everything, half = (
        trained(tmp_path / str(scale), "wise-ft", {"adapter_scale": scale}) for scale in (0.0, 1.0, 0.5)
    )
    assert torch.equal(logits(nothing.model), base)
    assert torch.equal(logits(everything.model), tuned)
    for some, all_of_it in zip(lora_pairs(half.model), lora_pairs(everything.model), strict=True):
        torch.testing.assert_close(some.B @ some.A, 0.5 * all_of_it.B @ all_of_it.A, rtol=1e-12, atol=0)


def test_a_run_that_a_signal_stops_is_not_scaled_yet(tmp_path: Path) -> None:
    """It goes on from its checkpoint, and is scaled when it has finished."""
    from transformers import TrainerCallback

    class Stopped(TrainerCallback):  # type: ignore[misc]
        signal = 15

    args = {"method": "wise-ft", "method_options": {"adapter_scale": 0.0}}
    ran = run(CHOSEN, tmp_path, change=lambda trainer: trainer.add_callback(Stopped()), **args)
    assert ran.trainer is not None
    assert all(pair.B.abs().max() > 0 for pair in lora_pairs(ran.trainer.model))


def test_low_lr_trains_at_its_fraction_of_the_rate(tmp_path: Path) -> None:
    slow = trained(tmp_path / "slow", "low-lr", {"lr_factor": 0.5})
    assert slow.optimizer.param_groups[0]["lr"] == 0.025
    assert slow.args.learning_rate == 0.05
    plain, fast = trained(tmp_path / "plain", "sft"), trained(tmp_path / "one", "low-lr", {"lr_factor": 1.0})
    assert torch.equal(logits(fast.model), logits(plain.model))
    assert not torch.equal(logits(slow.model), logits(plain.model))


def test_full_trains_every_weight_and_takes_no_adapter(tmp_path: Path) -> None:
    base = tiny("llama", seed=0)
    trainer = trained(tmp_path, "full", peft=False)
    moved = [not torch.equal(p, q) for p, q in zip(base.parameters(), trainer.model.parameters(), strict=True)]
    assert all(moved)
    with pytest.raises(ConfigError, match="trains all weights"):
        trained(tmp_path, "full")
    with pytest.raises(ConfigError, match="full fine-tuning has none"):
        trained(tmp_path, "wise-ft", peft=False)


def test_ewc_counts_once_a_step_with_the_bases_fisher_information(plain_run: Ran, tmp_path: Path) -> None:
    """Value and slope from loops, with the Fisher information that the run left in its folder."""
    options = {"ewc_weight": 0.5, "fisher_rows": 3}
    ran = run(CHOSEN, tmp_path, method="ewc", method_options=options, per_device_train_batch_size=1)
    assert ran.trainer is not None
    stored = load_file(tmp_path / FISHER)
    model = with_lora(tiny("llama"))
    names = {id(p): adapter_name(name) for name, p in model.named_parameters()}
    value, slope = 0.0, {}
    for index, pair in enumerate(lora_pairs(model)):
        weights = stored[f"layer.{index}"]
        assert (weights > 0).any()
        one, slope_A, slope_B = oracle.weighted_update(pair.A.tolist(), pair.B.tolist(), weights.tolist(), pair.scale)
        value += one
        slope[names[id(pair.A)]] = torch.tensor(slope_A, dtype=torch.float64)
        slope[names[id(pair.B)]] = torch.tensor(slope_B, dtype=torch.float64)
    expected = {name: g + 0.5 * slope[name] for name, g in plain_run.gradient.items()}
    assert relative_distance(plain_run.gradient, expected) > 0.01
    assert relative_distance(ran.gradient, expected) < TOLERANCE[torch.float64]
    assert ran.losses == pytest.approx([plain_run.losses[0] + 0.5 * value], rel=1e-5)
    off = run(CHOSEN, tmp_path / "off", method="ewc", method_options="ewc_weight=0")
    assert all(torch.equal(off.gradient[name], plain_run.gradient[name]) for name in plain_run.gradient)
    assert not (tmp_path / "off" / FISHER).exists()


def test_the_fisher_information_is_found_again_and_made_anew_for_another_base_or_other_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def counted(model: Any, texts: Any, **options: Any) -> Any:
        read.append(len(texts))
        return fisher_diagonal(model, texts, **options)

    monkeypatch.setattr("selfaug.before.fisher.fisher_diagonal", counted)
    general = tmp_path / "general.jsonl"
    general.write_text("".join(f'{{"prompt": "w4 w{i} w9", "completion": " w7"}}\n' for i in range(5, 10)))
    first = run(CHOSEN, tmp_path, method="ewc")
    again = run(CHOSEN, tmp_path, method="ewc")
    assert read == [4]
    assert all(torch.equal(first.gradient[name], again.gradient[name]) for name in first.gradient)
    of_general = run(CHOSEN, tmp_path, method="selfaug+ewc", method_options={"fisher_data": str(general)})
    assert read == [4, 5]
    assert of_general.trainer is not None
    run(CHOSEN, tmp_path, method="ewc", method_options={"fisher_rows": 2})
    run(CHOSEN, tmp_path, method="ewc", arch="qwen2")
    assert read == [4, 5, 2, 4]
    pissa = lora_config("llama")
    pissa.init_lora_weights = "pissa"
    with pytest.raises(ConfigError, match="pissa"):
        run(CHOSEN, tmp_path, method="ewc", peft_config=pissa)
