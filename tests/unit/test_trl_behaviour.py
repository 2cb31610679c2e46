"""Tests that trl, transformers and peft behave as our code assumes, beyond their names (`test_trl_names.py`).

A failure here names the file of ours that needs a look before the new version is allowed.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from selfaug.model.libraries import gathered_head, spare_refused_modules, switchable_layers
from tests.integration import small
from tests.models import MIXTURES, tiny, with_lora

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")


@pytest.mark.parametrize("arch", ["llama", "falcon_h1", "lfm2", *MIXTURES])
def test_the_flag_alone_switches_every_adapter_layer_off(arch: str) -> None:
    ids = torch.arange(5, 15)[None]
    base, tuned = tiny(arch), with_lora(tiny(arch))
    assert not torch.equal(tuned(ids).logits, base(ids).logits), "the adapter changes nothing"
    layers = switchable_layers(tuned)
    assert layers
    for layer in layers:
        layer._disable_adapters = True
    assert torch.equal(tuned(ids).logits, base(ids).logits), (
        "a PEFT layer no longer obeys its _disable_adapters flag: look at model/libraries.py, reference/adapter.py"
    )


def test_the_flag_alone_switches_saved_modules_and_tokens_off() -> None:
    ids = torch.arange(5, 15)[None]
    config = LoraConfig(
        r=4,
        target_modules="all-linear",
        modules_to_save=["norm"],
        trainable_token_indices=[6, 7],
        task_type="CAUSAL_LM",
    )
    tuned = get_peft_model(tiny("llama"), config, autocast_adapter_dtype=False).eval()
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad:
                assert any(part in name for part in ("lora_", "modules_to_save", "token_adapter")), name
                parameter.add_(0.1)
    base = tiny("llama")
    assert not torch.equal(tuned(ids).logits, base(ids).logits)
    for layer in switchable_layers(tuned):
        layer._disable_adapters = True
    assert torch.equal(tuned(ids).logits, base(ids).logits), "look at model/libraries.py (switchable_layers)"


def test_a_trained_head_is_a_wrapper_of_two() -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    head: Any = get_peft_model(tiny("llama"), config).get_base_model().get_output_embeddings()
    ours = "look at model/parts.py (head_of)"
    assert isinstance(head.original_module, nn.Linear), ours
    assert head.active_adapters == ["default"], ours
    assert isinstance(head.modules_to_save["default"], nn.Linear), ours
    assert not head.original_module.weight.requires_grad, ours
    assert head.modules_to_save["default"].weight.requires_grad, ours


def test_a_head_that_is_whole_needs_no_gathering() -> None:
    head = nn.Linear(2, 3)
    before = head.weight.clone()
    with gathered_head(head.weight, head.bias):
        assert torch.equal(head.weight, before)


@pytest.mark.parametrize(("model_type", "excluded"), [("falcon_h1", ["out_proj", "conv1d"]), ("llama", None)])
def test_peft_still_refuses_what_we_spare_it(model_type: str, excluded: list[str] | None) -> None:
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    if excluded:
        with pytest.raises(ValueError, match="out_proj"):
            get_peft_model(tiny("falcon_h1"), config)
        config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    spare_refused_modules(config, model_type)
    assert (config.exclude_modules and sorted(config.exclude_modules)) == (excluded and sorted(excluded))
    get_peft_model(tiny(model_type), config)
    own = LoraConfig(target_modules=["q_proj"])
    spare_refused_modules(own, model_type)
    assert own.exclude_modules is None, "a choice of the user's was changed"


class _Steps(TrainerCallback):  # type: ignore[misc]
    def __init__(self) -> None:
        self.events: list[str] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.events.append("before")

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.events.append("after")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """TRL's own trainer of a small mixture of experts after one step, and what it handed to `compute_loss`."""
    seen: list[dict[str, Any]] = []

    class Watched(SFTTrainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            seen.append({"inputs": dict(inputs), "steps": self.current_gradient_accumulation_steps, **kwargs})
            return super().compute_loss(model, inputs, *args, **kwargs)

    folder = tmp_path_factory.mktemp("trl")
    args = SFTConfig(
        output_dir=str(folder), max_steps=1, bf16=False, use_cpu=True, report_to="none", packing=True, max_length=64,
        gradient_checkpointing=False, gradient_accumulation_steps=2, per_device_train_batch_size=1, save_steps=500,
        disable_tqdm=True,
    )  # fmt: skip
    steps = _Steps()
    trainer = Watched(
        small.model("mixtral"),
        args,
        train_dataset=Dataset.from_list(small.rows(30)),
        processing_class=small.tokenizer(),
        peft_config=small.lora(),
        callbacks=[steps],
    )
    trainer.train()
    return SimpleNamespace(trainer=trainer, seen=seen, events=steps.events, folder=folder)


def test_the_trainer_has_the_attributes_that_we_read(trained: SimpleNamespace) -> None:
    trainer = trained.trainer
    ours = "look at trainer.py"
    assert trainer._is_vision_dataset is False, ours
    assert trainer._tokenizer is trainer.processing_class, ours
    assert trainer.aux_loss_enabled is True, ours
    assert isinstance(trainer.router_aux_loss_coef, float), ours
    assert trainer.router_aux_loss_coef > 0, ours
    assert trainer.is_fsdp_enabled is False, ours
    assert trainer.is_deepspeed_enabled is False, ours
    assert trainer.accelerator.parallelism_config is None, ours
    assert getattr(trainer.accelerator.state, "fsdp_plugin", None) is None, ours
    assert trainer.state.best_model_checkpoint is None, ours
    assert trainer._get_output_dir(trial=None) == str(trained.folder), ours
    text = trainer.model.config.get_text_config()
    for name in ("num_experts", "num_experts_per_tok"):
        assert hasattr(text, name), "look at model/parts.py (auxiliary_loss)"


def test_a_packed_micro_batch_has_what_the_plan_reads(trained: SimpleNamespace) -> None:
    ours = "look at plan.py (document_ids) and reference_batch.py (_padding_free)"
    assert len(trained.seen) == 2
    for entry in trained.seen:
        inputs = entry["inputs"]
        assert inputs["position_ids"].shape == inputs["input_ids"].shape == inputs["labels"].shape, ours
        assert inputs["input_ids"].shape[0] == 1, ours
        assert inputs.get("attention_mask") is None, ours
        starts = inputs["position_ids"][0] == 0
        assert starts[0], ours
        assert starts.sum() > 1, "no packed row holds two documents: nothing was seen"
        assert (inputs["labels"][0, starts] == -100).all(), "a document's first label is trained on; " + ours
        assert entry["steps"] == 2, "look at trainer.py (compute_loss)"
        assert int(entry["num_items_in_batch"]) == sum(
            int((e["inputs"]["labels"][:, 1:] != -100).sum()) for e in trained.seen
        ), "transformers counts other tokens: look at trainer.py (get_batch_samples)"


def test_the_callback_comes_before_the_optimizer_moves(trained: SimpleNamespace) -> None:
    assert trained.events == ["before", "after"], "look at training/trainer.py (_StopOnNonFinite)"


def test_a_run_shorter_than_save_steps_is_saved_by_transformers(trained: SimpleNamespace) -> None:
    saved = {path.name for path in (Path(trained.folder) / "checkpoint-1").iterdir()}
    needed = {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    assert needed <= saved, "what resuming needs is saved elsewhere: look at run/checkpoint.py, training/trainer.py"


def test_a_model_has_a_body_below_its_head() -> None:
    model = tiny("llama")
    hidden = model.base_model(input_ids=torch.arange(5, 9)[None], use_cache=False).last_hidden_state
    torch.testing.assert_close(model.get_output_embeddings()(hidden), model(torch.arange(5, 9)[None]).logits)
    assert tiny("gemma2").config.get_text_config().final_logit_softcapping == 3.0, (
        "look at model/parts.py (logit_shape)"
    )
    assert "rope_type" in model.config.rope_parameters, "look at model/parts.py (depends_on_what_follows)"
