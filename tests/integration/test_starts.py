"""Do adapters that start as a part of the weights begin at the base, and end as plain ones on the base as it was?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import TrainerCallback

from selfaug.before.adapter_start import FILE
from selfaug.common.errors import ConfigError
from selfaug.model.libraries import lora_pairs
from selfaug.training.config import SelfAugConfig
from selfaug.training.trainer import SelfAugTrainer
from tests.integration.small import lora, model, rows, tokenizer

IDS = torch.arange(5, 25)[None]
SETTINGS: dict[str, Any] = {
    "max_steps": 3, "save_steps": 2, "learning_rate": 1e-2, "bf16": False, "gradient_checkpointing": False,
    "report_to": "none", "disable_tqdm": True, "use_cpu": True, "max_length": 64, "per_device_train_batch_size": 4,
    "logging_steps": 1, "method": "corda",
}  # fmt: skip


def make(folder: Path, peft_config: LoraConfig | None = None, **changes: Any) -> SelfAugTrainer:
    return SelfAugTrainer(
        model(),
        SelfAugConfig(**{**SETTINGS, "output_dir": str(folder), **changes}),
        train_dataset=Dataset.from_list(rows(24)),
        processing_class=tokenizer(),
        peft_config=peft_config or lora(),
    )


def logits(of: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = of.eval()(input_ids=IDS).logits
    return found


class Before(TrainerCallback):  # type: ignore[misc]
    """What the trained model computes before it is made a plain adapter on the base."""

    logits: Tensor

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.logits = logits(model)


# Products of float32 matrices of rank 4 and their subtraction: some roundings of 6e-8 on logits of about 10.
CLOSE: dict[str, Any] = {"rtol": 1e-3, "atol": 2e-4}


@pytest.mark.parametrize("method", ["corda", "pissa"])
@pytest.mark.parametrize("rslora", [False, True])
def test_it_starts_at_the_base_and_ends_as_a_plain_adapter_on_it(method: str, rslora: bool, tmp_path: Path) -> None:
    base = logits(model())
    trainer = make(tmp_path, lora(use_rslora=rslora), method=method)
    torch.testing.assert_close(logits(trainer.model), base, **CLOSE)
    with trainer.model.disable_adapter():
        assert (logits(trainer.model) - base).abs().max() > 0.01  # precondition: a part is missing
    before = Before()
    trainer.add_callback(before)
    trainer.train()
    tuned = logits(trainer.model)
    torch.testing.assert_close(tuned, before.logits, **CLOSE)
    assert (tuned - base).abs().max() > 0.1
    with trainer.model.disable_adapter():
        torch.testing.assert_close(logits(trainer.model), base, **CLOSE)
    trainer.save_model(str(tmp_path / "adapter"))
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (saved["r"], saved["init_lora_weights"]) == (8, True)
    loaded = PeftModel.from_pretrained(model(), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(loaded), tuned, **CLOSE)


def oracle(weight: Tensor, inputs: list[Tensor], rank: int) -> Tensor:
    """``U Σ Vᵀ C⁻¹`` of the ``rank`` smallest directions, in float64; the damping is PEFT's."""
    C = torch.zeros(weight.shape[1], weight.shape[1], dtype=torch.float64)
    for x in inputs:
        scaled = x.double() / x.double().max().abs()
        C += scaled.T @ scaled / len(inputs)
    C += 0.01 * C.diag().mean() * torch.eye(len(C), dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(weight.double() @ C, full_matrices=False)
    return U[:, -rank:] @ torch.diag(S[-rank:]) @ Vh[-rank:] @ torch.linalg.inv(C)


def test_corda_starts_with_what_the_texts_use_least(tmp_path: Path) -> None:
    """By the general data, whose inputs to a layer are caught in the base without any adapter."""
    general = tmp_path / "general.jsonl"
    texts = [row["prompt"] + row["completion"] for row in rows(12, seed=9)]
    general.write_text("".join(json.dumps({"prompt": text, "completion": " w1"}) + "\n" for text in texts))
    trainer = make(tmp_path / "run", method_options={"corda_data": str(general)})
    ids = [row["input_ids"] for row in trainer._rows_of(general)]
    base, caught = model(), list[Tensor]()
    layer = base.model.layers[1].mlp.gate_proj
    layer.register_forward_hook(lambda module, given, output: caught.append(given[0][0]))
    for row in ids:
        base(input_ids=torch.tensor([row]))
    assert len(caught) == 12
    expected = oracle(layer.weight.detach(), caught, 4)
    pair = next(p for p in lora_pairs(trainer.model) if p.layer is trainer.base_model.model.layers[1].mlp.gate_proj)
    started = pair.scale * pair.B.double() @ pair.A.double()
    assert (started - expected).norm() < 0.02 * expected.norm()
    of_prompts = lora_pairs(make(tmp_path / "other").model)
    other = next(p for p, q in zip(of_prompts, lora_pairs(trainer.model), strict=True) if q.layer is pair.layer)
    assert (other.scale * other.B @ other.A - started).norm() > 0.1 * expected.norm()


@pytest.mark.parametrize("method", ["selfaug+corda", "selfaug+pissa"])
def test_with_the_first_adapter_as_reference_prompts_are_held_and_a_run_resumes(method: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="out of the base's weights") as refused:
        make(tmp_path, method=method)
    assert "--reference initial" in refused.value.hint
    whole = make(tmp_path / "whole", method=method, reference="initial")
    whole.train()
    first = next(entry for entry in whole.state.log_history if "alignment" in entry)
    assert abs(first["alignment"]) < 1e-6  # the reference is the base, which the adapter starts at
    assert whole.reference is not None
    assert whole.reference.name == "base"
    stopped = make(tmp_path / "two", method=method, reference="initial", max_steps=2, lr_scheduler_type="constant")
    stopped.train()
    again = make(tmp_path / "two", method=method, reference="initial", lr_scheduler_type="constant")
    again.train(resume_from_checkpoint=True)
    straight = make(tmp_path / "three", method=method, reference="initial", lr_scheduler_type="constant")
    straight.train()
    for one, other in zip(lora_pairs(again.model), lora_pairs(straight.model), strict=True):
        assert torch.equal(one.A, other.A)
        assert torch.equal(one.B, other.B)


def test_a_start_is_found_again_for_the_same_base_texts_and_adapter(tmp_path: Path, monkeypatch: Any) -> None:
    from selfaug.before import adapter_start

    made: list[int] = []
    compute = adapter_start._compute

    def counted(*given: Any) -> Any:
        made.append(len(given[3]))
        return compute(*given)

    monkeypatch.setattr("selfaug.before.adapter_start._compute", counted)
    first = make(tmp_path)
    assert not (tmp_path / FILE).exists()  # nothing is written before training
    start = [pair.A.detach().clone() for pair in lora_pairs(first.model)]
    first.train()
    again = make(tmp_path)
    assert made == [24]
    assert all(torch.equal(pair.A, A) for pair, A in zip(lora_pairs(again.model), start, strict=True))
    make(tmp_path, lora(r=3))
    make(tmp_path, method_options="corda_rows=5")
    assert made == [24, 24, 5]


def test_with_wise_ft_the_update_is_scaled_and_not_its_start(tmp_path: Path) -> None:
    base = logits(model())
    nothing = make(tmp_path, method="corda+wise-ft", method_options="adapter_scale=0")
    nothing.train()
    torch.testing.assert_close(logits(nothing.model), base, **CLOSE)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "corda+pissa"}, "decide where the adapter starts"),
        ({"method": "corda+stm"}, "asks the base before training"),
        ({"method": "corda+l2"}, "penalises the update"),
        ({"method": "full+corda"}, "trains without any"),
        ({"peft_config": lora(use_dora=True)}, "use_dora"),
        ({"peft_config": lora(r=33)}, "rank of at most 16"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        make(tmp_path, **changes)
    assert said in str(refused.value)
