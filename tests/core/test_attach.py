"""Tests of `selfaug.attach`: the step of a stock trainer equals the oracle's, as that of our own trainer does.

They also run with torch, transformers (5.6 and later), peft and safetensors alone, without trl and datasets.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

import selfaug
from selfaug.common.errors import ConfigError
from tests.models import adapter_name, lora_config, perturb_adapter, save_tiny, tiny, tiny_tokenizer, with_lora
from tests.oracles.planted import Step, neighbours_aligned, padding_aligned
from tests.oracles.sequences import ODD_SHAPES, SINGLE_TURN, sequences
from tests.oracles.step import Gradients, relative_distance

TOLERANCE = 1e-6  # float64 on both sides; what is left are flips of float32 roundings inside transformers
CHOSEN = sequences(SINGLE_TURN)
ROWS = [{"input_ids": list(ids), "labels": list(labels)} for ids, labels in CHOSEN]
HAS_TRL = importlib.util.find_spec("trl") is not None

COMMON: dict[str, Any] = {
    "max_steps": 1, "learning_rate": 0.0, "weight_decay": 0.0, "max_grad_norm": 0.0, "lr_scheduler_type": "constant",
    "bf16": False, "save_strategy": "no", "logging_steps": 1, "report_to": [], "disable_tqdm": True, "use_cpu": True,
}  # fmt: skip


@dataclass
class Ran:
    """What a step left behind."""

    trainer: Any
    gradient: Gradients = field(default_factory=dict)
    batches: list[Any] = field(default_factory=list)


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Moves the adapter as training begins, and keeps the gradient of the step."""

    def __init__(self, ran: Ran) -> None:
        self.ran = ran

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        perturb_adapter(model)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.ran.gradient = {adapter_name(name): p.grad.detach().clone() for name, p in trained.items()}


def make(kind: str, folder: Path, *, adapted: bool = True, rows: list[Any] = ROWS, **settings: Any) -> Any:
    model = tiny("llama", dtype=torch.float64)
    if kind == "stock":
        return Trainer(
            get_peft_model(model, lora_config("llama")) if adapted else model,
            TrainingArguments(str(folder), **COMMON, **settings),
            train_dataset=rows,
            data_collator=DataCollatorForSeq2Seq(tiny_tokenizer(), pad_to_multiple_of=8),
        )
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(str(folder), **{"max_length": 256, "gradient_checkpointing": False, **COMMON, **settings})
    return SFTTrainer(
        model,
        args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
        peft_config=lora_config("llama"),
    )


def train(trainer: Any) -> Ran:
    ran = Ran(trainer)
    trainer.add_callback(Recorder(ran))
    taken = trainer.get_batch_samples

    def get_batch_samples(*given: Any, **named: Any) -> Any:
        batches, count = taken(*given, **named)
        ran.batches += [dict(batch) for batch in batches]
        return batches, count

    trainer.get_batch_samples = get_batch_samples
    trainer.train()
    return ran


EIGHT = sequences((*SINGLE_TURN, (7, 3), (4, 6)))
NEEDS_TRL = pytest.mark.skipif(not HAS_TRL, reason="trl is not installed")


@pytest.mark.parametrize(("size", "accumulated"), [(8, 1), (2, 4)])
@pytest.mark.parametrize(
    ("kind", "packing"),
    [
        ("stock", {}),
        pytest.param("sft", {}, marks=NEEDS_TRL),
        pytest.param("sft", {"packing": True, "max_length": 32}, marks=NEEDS_TRL),
    ],
    ids=["stock", "sft", "sft packing"],
)
def test_a_step_of_another_trainer_equals_the_oracle(
    kind: str, packing: dict[str, Any], size: int, accumulated: int, tmp_path: Path
) -> None:
    assert len(EIGHT) == size * accumulated, "one step over all sequences"
    size = 1 if packing and accumulated > 1 else size
    rows = [{"input_ids": list(ids), "labels": list(labels)} for ids, labels in EIGHT]
    settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated, **packing}
    trainer = make(kind, tmp_path, rows=rows, **settings)
    assert selfaug.attach(trainer) is trainer
    ran = train(trainer)
    assert len(ran.batches) == accumulated
    if packing:
        assert sum(batch["input_ids"].numel() for batch in ran.batches) == sum(len(ids) for ids, _ in EIGHT)
        assert any(int((batch["position_ids"] == 0).sum()) > 1 for batch in ran.batches), "documents share a row"
    else:
        assert any(not batch["attention_mask"].all() for batch in ran.batches), "something is padded"
    oracle = Step(lambda: tiny("llama", dtype=torch.float64), with_lora(tiny("llama", dtype=torch.float64)), EIGHT)
    loss, gradient = oracle.gradient()
    assert relative_distance(ran.gradient, gradient) < TOLERANCE
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert logged["loss"] == pytest.approx(logged["nll"] + 2.0 * logged["alignment"], rel=1e-5)
    assert logged["alignment"] > 0


def test_alpha_0_trains_as_the_trainer_alone(tmp_path: Path) -> None:
    attached, alone = (make("stock", tmp_path / name, per_device_train_batch_size=6) for name in ("attached", "alone"))
    selfaug.attach(attached, alpha=0.0)
    assert relative_distance(train(attached).gradient, train(alone).gradient) < TOLERANCE


class StopAfter(TrainerCallback):  # type: ignore[misc]
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def test_a_resumed_run_is_held_to_where_the_first_one_began(tmp_path: Path) -> None:
    settings = {**COMMON, "learning_rate": 0.05, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}

    def trained(
        folder: Path, until: int, *, resume: Path | None = None, named: bool = False
    ) -> dict[str, torch.Tensor]:
        torch.manual_seed(0 if resume is None else 123)  # a fresh adapter of the resumed process is another one
        trainer = Trainer(
            get_peft_model(tiny("llama", dtype=torch.float64), lora_config("llama")),
            TrainingArguments(str(folder), **{**settings, "per_device_train_batch_size": 2}),
            train_dataset=ROWS,
            data_collator=DataCollatorForSeq2Seq(tiny_tokenizer()),
        )
        if resume is None:
            perturb_adapter(trainer.model)
        selfaug.attach(trainer, reference="initial")
        if until < 4:
            trainer.add_callback(StopAfter(until))
        if named:
            trainer.args.resume_from_checkpoint = str(resume)
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}

    whole = trained(tmp_path / "whole", 4)
    trained(tmp_path / "cut", 2)
    checkpoint = tmp_path / "cut" / "checkpoint-2"
    assert (checkpoint / "selfaug_reference.safetensors").is_file()
    moved = trained(tmp_path / "elsewhere", 4, resume=checkpoint, named=True)
    resumed = trained(tmp_path / "cut", 4, resume=checkpoint)
    assert all(torch.equal(whole[name], resumed[name]) and torch.equal(whole[name], moved[name]) for name in whole)


def test_a_target_gives_each_step_its_weight_and_resumes_to_the_bit(tmp_path: Path) -> None:
    settings = {**COMMON, "learning_rate": 0.05, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}

    def trained(folder: Path, until: int = 4, resume: str | None = None) -> tuple[Any, dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        trainer = make_with(folder, **{**settings, "lr_scheduler_type": "linear"})
        perturb_adapter(trainer.model)
        selfaug.attach(trainer, align_target=0.1, align_fraction=0.5, check=False)
        if until < 4:
            trainer.add_callback(StopAfter(until))
        trainer.train(resume_from_checkpoint=resume)
        return trainer, {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}

    whole, weights = trained(tmp_path / "whole")
    trained(tmp_path / "cut", 2)
    resumed, again = trained(tmp_path / "cut", resume=str(tmp_path / "cut" / "checkpoint-2"))
    logs = [[entry for entry in t.state.log_history if "nll" in entry] for t in (whole, resumed)]
    assert [entry["alpha"] for entry in logs[0]] == [entry["alpha"] for entry in logs[1]]
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    start = (0.27 / 0.1) ** 1.5
    used = [start, *(entry["alpha"] for entry in logs[0])]
    assert abs(used[2] / start - 1) > 0.05, "the weight moves before the checkpoint"
    torch.manual_seed(0)
    all_drawn = make_with(tmp_path / "all", **settings)
    perturb_adapter(all_drawn.model)
    selfaug.attach(all_drawn, align_target=0.1, check=False)
    all_drawn.train()
    entries = [entry for entry in all_drawn.state.log_history if "nll" in entry]
    used = [start, *(entry["alpha"] for entry in entries)]
    for alpha, entry in zip(used, entries, strict=False):
        assert entry["loss"] == pytest.approx(entry["nll"] + alpha * entry["alignment"], rel=1e-5)
    (tmp_path / "cut" / "checkpoint-2" / "selfaug_method.safetensors").unlink()
    with pytest.raises(ConfigError, match="trained with a fixed one"):
        trained(tmp_path / "cut", resume=str(tmp_path / "cut" / "checkpoint-2"))


class BreaksAt(TrainerCallback):  # type: ignore[misc]
    """Makes a weight infinite after a step, so that the next loss is not a number."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.step:
            with torch.no_grad():
                next(p for p in model.parameters() if p.requires_grad).fill_(float("inf"))


class NoMemoryAt(TrainerCallback):  # type: ignore[misc]
    """Asks for more memory than there is in the reference pass of the step after the given one."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.step:
            model.get_base_model().model.register_forward_hook(self.take)

    def take(self, body: torch.nn.Module, inputs: Any, outputs: Any) -> None:
        assert not outputs.last_hidden_state.requires_grad, "the reference pass comes first"
        torch.empty(2**50)


class FullDiskAt(TrainerCallback):  # type: ignore[misc]
    """Lets every file end at 20 kB after a step, as on a full disk."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.parametrize(
    ("breaks", "error", "said"),
    [
        (BreaksAt, FloatingPointError, "the loss of step 4 is not finite"),
        (NoMemoryAt, RuntimeError, "you tried to allocate"),
        (FullDiskAt, Exception, None),
    ],
    ids=["not a number", "no memory", "full disk"],
)
def test_what_stops_a_run_leaves_the_last_checkpoint(breaks: Any, error: Any, said: Any, tmp_path: Path) -> None:
    settings = {**COMMON, "learning_rate": 0.05, "save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    trainer = make_with(tmp_path, **settings)
    trainer.add_callback(breaks(3))
    selfaug.attach(trainer, reference="initial" if breaks is FullDiskAt else "base")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(error, match=said):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    if breaks is FullDiskAt:
        assert not (tmp_path / "checkpoint-4" / "trainer_state.json").exists(), "the second checkpoint is torn"
    else:
        assert [file.name for file in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    loaded = PeftModel.from_pretrained(tiny("llama", dtype=torch.float64), tmp_path / "checkpoint-2")
    assert all(bool(p.isfinite().all()) for p in loaded.parameters())
    resumed = make_with(tmp_path, **settings)
    selfaug.attach(resumed, reference="initial" if breaks is FullDiskAt else "base")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 6


def vllm_layers(folder: Path) -> set[str]:
    """The kinds of layers of an adapter, by what vLLM's loader accepts (its peft_helper.py and lora/utils.py)."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] > 0
    assert config["lora_alpha"] > 0
    assert config["bias"] == "none"
    assert not config["modules_to_save"]
    assert not config["use_dora"]
    layers = set()
    for name in load_file(folder / "adapter_model.safetensors"):
        prefix, _, rest = name.partition("base_model.model.")
        assert not prefix
        *_, layer, half, last = rest.split(".")
        assert half in ("lora_A", "lora_B")
        assert last == "weight"
        layers.add(layer)
    return layers


def test_a_saved_adapter_loads_in_peft_transformers_and_vllms_parser(tmp_path: Path) -> None:
    base = tiny("llama")
    trainer = selfaug.attach(make_with(tmp_path, tiny("llama"), **COMMON))
    perturb_adapter(trainer.model)
    trainer.save_model(str(tmp_path / "final"))
    ids = torch.arange(1, 20)[None]
    tuned = trainer.model.eval()(input_ids=ids).logits
    assert float((tuned - base(input_ids=ids).logits).abs().max()) > 0.01
    assert torch.equal(PeftModel.from_pretrained(tiny("llama"), tmp_path / "final")(input_ids=ids).logits, tuned)
    base.load_adapter(str(tmp_path / "final"))
    assert torch.equal(base(input_ids=ids).logits, tuned)
    assert vllm_layers(tmp_path / "final") == {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}


def test_the_base_is_kept_beside_the_adapter_and_another_one_is_refused(tmp_path: Path) -> None:
    settings = {**COMMON, "learning_rate": 0.05, "save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    folder = save_tiny(tmp_path / "base")

    def attached(**changed: Any) -> Any:
        trainer = make_with(tmp_path / "run", AutoModelForCausalLM.from_pretrained(folder), **{**settings, **changed})
        return selfaug.attach(trainer)

    trainer = attached()
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    checkpoint = tmp_path / "run" / "checkpoint-1"
    kept = [json.loads((saved / "selfaug_base.json").read_text()) for saved in (checkpoint, tmp_path / "final")]
    assert kept[0] == kept[1]
    assert kept[0]["name"] == str(folder)
    resumed = attached(max_steps=2)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == 2
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"are not those that the adapter in .* was trained on"):
        attached(max_steps=2).train(resume_from_checkpoint=str(checkpoint))


def make_with(folder: Path, model: Any = None, **settings: Any) -> Any:
    return Trainer(
        get_peft_model(model or tiny("llama", dtype=torch.float64), lora_config("llama")),
        TrainingArguments(str(folder), per_device_train_batch_size=2, **settings),
        train_dataset=ROWS,
        data_collator=DataCollatorForSeq2Seq(tiny_tokenizer()),
    )


@pytest.mark.parametrize(
    ("alignment", "said"),
    [
        ({"alpha": -1.0}, "is not a weight"),
        ({"alpha": float("nan")}, "is not a weight"),
        ({"align_fraction": 0.0}, "is not a share"),
        ({"align_direction": "base"}, "is not known"),
        ({"align_target": 0.0}, "is not a shift"),
        ({"align_target": 0.05, "alpha": 2.0}, "fixes the weight"),
        ({"align_target": 0.05, "align_direction": "jsd"}, "another divergence"),
    ],
)
def test_settings_out_of_range_are_refused(alignment: dict[str, Any], said: str, tmp_path: Path) -> None:
    trainer = make("stock", tmp_path)
    with pytest.raises(ConfigError, match=said):
        selfaug.attach(trainer, **alignment)


def test_full_fine_tuning_without_another_reference_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="full fine-tuning has none"):
        selfaug.attach(make("stock", tmp_path, adapted=False))


@NEEDS_TRL
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss_type": "dft"}, "loss_type='dft' is not supported"),
        ({"packing": True, "packing_strategy": "wrapped"}, "keeps no document boundaries"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor is not supported"),
    ],
)
def test_another_loss_of_trls_trainer_is_refused(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    trainer = make("sft", tmp_path, **settings)
    with pytest.raises(ConfigError, match=said):
        selfaug.attach(trainer)


def test_the_loss_of_experts_is_refused(tmp_path: Path) -> None:
    model = tiny("mixtral")
    trainer = make_with(tmp_path, model, **COMMON)
    model.config.output_router_logits = True
    with pytest.raises(ConfigError, match="load-balancing loss of experts is not computed"):
        selfaug.attach(trainer)
    model.config.output_router_logits = False
    selfaug.attach(trainer)


@pytest.mark.parametrize(
    ("plugin", "said"),
    [
        ({"fsdp_version": 1}, "hides the adapter from its own switch"),
        ({"fsdp_version": 2, "activation_checkpointing": True}, "finished adapter would be empty"),
    ],
)
def test_ways_of_fsdp_that_lose_the_adapter_are_refused(plugin: dict[str, Any], said: str, tmp_path: Path) -> None:
    trainer = make("stock", tmp_path)
    trainer.accelerator.state.fsdp_plugin = SimpleNamespace(**plugin)
    try:
        with pytest.raises(ConfigError, match=said):
            selfaug.attach(trainer)
    finally:
        trainer.accelerator.state.fsdp_plugin = None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda batch: {k: v for k, v in batch.items() if k != "labels"}, "has no labels"),
        (lambda batch: {k: v for k, v in batch.items() if k != "attention_mask"}, "neither attention_mask"),
        (lambda batch: {**batch, "attention_mask": batch["attention_mask"][:, None, None]}, "4 dimensions"),
    ],
)
def test_a_batch_from_which_the_prompt_cannot_be_told_is_refused(change: Any, said: str, tmp_path: Path) -> None:
    trainer = make("stock", tmp_path)
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: change(dict(collate(rows)))
    selfaug.attach(trainer)
    with pytest.raises(ConfigError, match=said):
        trainer.train()


def in_one_row(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """One row of documents and padding; only the square mask tells them apart."""
    owners = [i for i, row in enumerate(rows) for _ in row["input_ids"]] + [-1] * 5
    seen_TT = torch.tensor([[a == b >= 0 and k <= q for k, b in enumerate(owners)] for q, a in enumerate(owners)])
    places = [place for row in rows for place in range(len(row["input_ids"]))]
    ids, labels = ([t for row in rows for t in row[name]] for name in ("input_ids", "labels"))
    return {
        "input_ids": torch.tensor([ids + [0] * 5]),
        "labels": torch.tensor([labels + [-100] * 5]),
        "position_ids": torch.tensor([places + [0] * 5]),
        "attention_mask": torch.zeros(1, 1, *seen_TT.shape, dtype=torch.float64).masked_fill(~seen_TT, -1e300),
    }


def test_documents_under_a_square_mask_train_as_they_do_alone(tmp_path: Path) -> None:
    trainer = make("stock", tmp_path, per_device_train_batch_size=6)
    trainer.data_collator = in_one_row
    ran = train(selfaug.attach(trainer))
    assert ran.batches[0]["attention_mask"].dim() == 4
    oracle = Step(lambda: tiny("llama", dtype=torch.float64), with_lora(tiny("llama", dtype=torch.float64)), CHOSEN)
    assert relative_distance(ran.gradient, oracle.gradient()[1]) < TOLERANCE


def test_a_square_mask_for_layers_with_a_window_is_refused(tmp_path: Path) -> None:
    model = get_peft_model(tiny("mistral"), lora_config("mistral"))
    args = TrainingArguments(str(tmp_path), **COMMON, per_device_train_batch_size=6)
    trainer = Trainer(model, args, train_dataset=ROWS, data_collator=in_one_row)
    with pytest.raises(ConfigError, match="do not attend to all of it"):
        selfaug.attach(trainer).train()


def test_an_adapter_with_a_loss_of_its_own_is_refused(tmp_path: Path) -> None:
    config = AdaLoraConfig(target_modules=["q_proj"], total_step=10, task_type="CAUSAL_LM")
    args = TrainingArguments(str(tmp_path), **COMMON)
    trainer = Trainer(get_peft_model(tiny("llama"), config), args, train_dataset=ROWS)
    with pytest.raises(ConfigError, match="AdaLoRA adds a loss of its own"):
        selfaug.attach(trainer)


class Packs:
    """Lays documents in rows as axolotl does: positions alone separate them, and padding is numbered like one more."""

    def __init__(self, width: int, *, mask: bool = False) -> None:
        self.width, self.mask = width, mask

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        packed: list[dict[str, list[int]]] = []
        for row in rows:
            ids, labels = row["input_ids"], row["labels"]
            if not packed or len(packed[-1]["input_ids"]) + len(ids) > self.width:
                packed.append({"input_ids": [], "labels": [], "position_ids": []})
            packed[-1]["input_ids"] += ids
            packed[-1]["labels"] += labels
            packed[-1]["position_ids"] += range(len(ids))
        for row in packed:
            gap = self.width - len(row["input_ids"])
            row["input_ids"] = row["input_ids"] + [0] * gap
            row["labels"] = row["labels"] + [-100] * gap
            row["position_ids"] = row["position_ids"] + list(range(gap))
        batch = {name: torch.tensor([row[name] for row in packed]) for name in packed[0]}
        return {**batch, "attention_mask": (batch["input_ids"] != 0).long()} if self.mask else batch


def packing(folder: Path, collator: Any, rows: list[dict[str, Any]] = ROWS, **settings: Any) -> Any:
    model = get_peft_model(tiny("llama", dtype=torch.float64), lora_config("llama"))
    settings = {**COMMON, "per_device_train_batch_size": len(rows), **settings}
    tokenizer = tiny_tokenizer()
    args = TrainingArguments(str(folder), **settings)
    return Trainer(model, args, train_dataset=rows, data_collator=collator, processing_class=tokenizer)


def test_padding_that_is_numbered_like_a_document_is_not_aligned(tmp_path: Path) -> None:
    chosen = sequences((*SINGLE_TURN, *ODD_SHAPES))
    rows = [{"input_ids": list(ids), "labels": list(labels)} for ids, labels in chosen]
    trainer = packing(tmp_path, Packs(40), rows)
    selfaug.attach(trainer)
    ran = train(trainer)
    (batch,) = ran.batches
    assert "attention_mask" not in batch
    assert len(batch["input_ids"]) > 1
    padding = (batch["input_ids"] == 0) & (batch["position_ids"] > 0)
    assert padding.any(), "padding has positions of its own"
    step = Step(lambda: tiny("llama", dtype=torch.float64), with_lora(tiny("llama", dtype=torch.float64)), chosen)
    assert relative_distance(ran.gradient, step.gradient()[1]) < TOLERANCE
    assert relative_distance(ran.gradient, padding_aligned(step)) > 0.01
    assert relative_distance(ran.gradient, neighbours_aligned(step)) > 0.01


def test_documents_that_see_each_other_are_refused(tmp_path: Path) -> None:
    # With a mask of ones and zeros, transformers takes a row for one document.
    trainer = packing(tmp_path, Packs(40, mask=True))
    selfaug.attach(trainer)
    with pytest.raises(ConfigError, match="see each other"):
        trainer.train()


def one_row(**changed: list[int]) -> Any:
    """A collator that gives one row of two documents of 4 and 3 tokens, and one of padding."""
    row = {
        "input_ids": [5, 6, 7, 8, 9, 10, 11, 0], "labels": [-100, -100, 7, 8, -100, -100, 11, -100],
        "position_ids": [0, 1, 2, 3, 0, 1, 2, 0], **changed,
    }  # fmt: skip
    return lambda rows: {name: torch.tensor([value]) for name, value in row.items()}


SQUARE: Any = [torch.block_diag(torch.ones(4, 4), torch.ones(3, 3), torch.zeros(1, 1)).tril().bool().tolist()]


@pytest.mark.parametrize(
    ("collator", "said"),
    [
        (one_row(position_ids=[0, 1, 2, 3, 0, 1, 2, 3]), "do not tell padding"),
        (one_row(attention_mask=[1, 1, 1, 1, 2, 2, 2, 0], position_ids=[*range(8)]), "run on through them"),
        (one_row(attention_mask=SQUARE, position_ids=[*range(8)]), "run on through them"),
        (one_row(labels=[11, -100]), "cuts labels to the logits"),
        (one_row(loss_scale=[1] * 8), "holds 'loss_scale'"),
        (one_row(position_ids=[0, 1, 2, 3, 0, 1, 2]), "one number a token is needed"),
    ],
    ids=[
        "positions run on through padding",
        "squashed positions",
        "squashed under a square mask",
        "labels trimmed",
        "loss scales",
        "positions of another length",
    ],
)
def test_a_layout_that_would_align_something_else_is_refused(collator: Any, said: str, tmp_path: Path) -> None:
    trainer = packing(tmp_path, collator, remove_unused_columns=False)
    selfaug.attach(trainer)
    with pytest.raises(ConfigError, match=said):
        trainer.train()


def test_labels_that_are_trimmed_after_planning_are_refused_in_evaluation_alone(tmp_path: Path) -> None:
    trainer = packing(tmp_path, DataCollatorForSeq2Seq(tiny_tokenizer()))
    prepare = trainer._prepare_inputs
    trainer._prepare_inputs = lambda inputs: prepare({**inputs, "labels": inputs["labels"][:, -3:]})
    selfaug.attach(trainer)
    ran = train(trainer)
    oracle = Step(lambda: tiny("llama", dtype=torch.float64), with_lora(tiny("llama", dtype=torch.float64)), CHOSEN)
    assert relative_distance(ran.gradient, oracle.gradient()[1]) < TOLERANCE
    with pytest.raises(ConfigError, match="cuts labels to the logits"):
        trainer.evaluate(ROWS)


def test_a_batch_that_lost_its_plan_is_refused(tmp_path: Path) -> None:
    trainer = packing(tmp_path, DataCollatorForSeq2Seq(tiny_tokenizer()))
    prepare = trainer._prepare_inputs
    trainer._prepare_inputs = lambda inputs: prepare({k: v for k, v in inputs.items() if k != "selfaug"})
    selfaug.attach(trainer)
    with pytest.raises(ConfigError, match="did not reach compute_loss"):
        trainer.train()


def test_a_batch_that_is_split_after_planning_is_refused(tmp_path: Path) -> None:
    trainer = packing(tmp_path, DataCollatorForSeq2Seq(tiny_tokenizer()))
    prepare = trainer._prepare_inputs
    trainer._prepare_inputs = lambda inputs: prepare(
        {name: value[:, :8] if torch.is_tensor(value) else value for name, value in inputs.items()}
    )
    selfaug.attach(trainer)
    with pytest.raises(ConfigError, match="after its step was planned"):
        trainer.train()


def test_left_padding_under_unsloth_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    selfaug.attach(trainer := packing(tmp_path, DataCollatorForSeq2Seq(tokenizer)))
    trainer.train()
    monkeypatch.setitem(sys.modules, "unsloth", sys)
    with pytest.raises(ConfigError, match="Unsloth trains without the attention mask"):
        trainer.train()


def test_rows_without_a_prompt_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in ROWS]
    trainer = packing(tmp_path, DataCollatorForSeq2Seq(tiny_tokenizer()), trained, max_steps=2)
    selfaug.attach(trainer)
    trainer.train()
    assert [record.message for record in caplog.records if "no token of the first step is aligned" in record.message]


@pytest.mark.parametrize(
    ("fraction", "accumulated", "said"),
    [(0.125, 1, "aligns 0.5 of the 4 sequences"), (0.25, 2, None), (0.25, 1, "Give 0.5"), (1.0, 1, None)],
)
def test_too_few_aligned_sequences_a_step_are_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fraction: float, accumulated: int, said: str | None
) -> None:
    rows = (ROWS * 8)[:8]
    settings = {"max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": accumulated}
    trainer = packing(tmp_path, DataCollatorForSeq2Seq(tiny_tokenizer()), rows, **settings)
    selfaug.attach(trainer, align_fraction=fraction)
    trainer.train()
    found = [record.message for record in caplog.records if "align_fraction=" in record.message]
    assert len(found) == (said is not None)
    assert all(str(said) in each for each in found)


def test_a_trainer_is_attached_once(tmp_path: Path) -> None:
    trainer = selfaug.attach(make("stock", tmp_path))
    with pytest.raises(ConfigError, match="attached to this trainer already"):
        selfaug.attach(trainer)


def test_the_loop_of_the_page_trains_what_attach_does() -> None:
    page = (Path(__file__).parents[2] / "docs" / "other-trainers.md").read_text(encoding="utf-8")
    blocks = page.split("```python\n")[1:]
    made: dict[str, Any] = {}
    exec(compile(blocks[-1].partition("```")[0], "other-trainers.md", "exec"), made)
    model = get_peft_model(tiny("llama", dtype=torch.float64), lora_config("llama"))
    perturb_adapter(model)
    batch = DataCollatorForSeq2Seq(tiny_tokenizer())([dict(row) for row in ROWS])
    assert not batch["attention_mask"].all(), "something is padded"
    loss = made["step_loss"](model.eval(), batch)
    loss.backward()
    oracle = Step(lambda: tiny("llama", dtype=torch.float64), with_lora(tiny("llama", dtype=torch.float64)), CHOSEN)
    expected, gradient = oracle.gradient()
    found = {adapter_name(name): p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert relative_distance(found, gradient) < TOLERANCE
