"""Tests that the private names of trl, transformers, peft and accelerate that we use are what they were.

A failure here names the file of ours that needs a look before the new version is allowed.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from typing import Any

import pytest
from transformers import Trainer
from trl import SFTTrainer


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


# ---- names that must exist ------------------------------------------------------------------------------------------

NAMES = {
    "peft.tuners.tuners_utils:BaseTunerLayer._disable_adapters": "model/libraries.py, reference/adapter.py",
    "peft.utils.other:AuxiliaryTrainingWrapper": "model/libraries.py",
    "peft.utils.other:ModulesToSaveWrapper.active_adapters": "model/parts.py (head_of)",
    "peft.tuners.lora:LoraLayer.get_base_layer": "model/libraries.py (lora_pairs)",
    "peft.tuners.lora:LoraLayer.active_adapters": "model/libraries.py (lora_pairs)",
    "peft.tuners.lora:LoraLayer.pissa_init": "model/libraries.py (pissa_parts)",
    "peft.tuners.lora:LoraLayer.corda_init": "model/libraries.py (corda_parts)",
    "peft.tuners.lora.config:CordaConfig": "model/libraries.py (corda_parts)",
    "peft.tuners.lora.corda:preprocess_corda": "model/libraries.py (corda_parts)",
    "peft:PeftModel.get_base_model": "training/trainer.py",
    "peft:PeftModel.active_peft_config": "training/trainer.py",
    "trl.trainer.utils:maybe_gather_lm_head_ctx": "model/libraries.py",
    "trl.models.utils:prepare_deepspeed": "reference/frozen.py",
    "accelerate.utils:fsdp2_prepare_model": "reference/frozen.py",
    "accelerate.commands.config.config_args:load_config_from_file": "cli/sharding.py",
    "transformers:Trainer.save_model": "training/trainer.py",
    "trl.data_utils:get_dataset_column_names": "training/rows.py",
    "trl.data_utils:maybe_convert_to_chatml": "training/rows.py",
    "trl.scripts.utils:DatasetConfig": "cli/parsing.py",
    "trl:get_dataset": "cli/data.py",
    "trl:get_peft_config": "cli/train.py",
    "trl:get_quantization_config": "cli/train.py, run/models.py",
    "trl:SFTTrainer._prepare_dataset": "training/trainer.py",
    "trl:SFTTrainer.prediction_step": "training/trainer.py (compute_loss)",
    "trl:SFTTrainer._tag_names": "training/trainer.py",
    "trl:SFTTrainer._name": "training/trainer.py",
    "transformers:Trainer.loss_is_scaled_for_ga": "training/trainer.py",
    "transformers:Trainer.create_optimizer": "training/trainer.py",
    "transformers:Trainer.get_batch_samples": "training/trainer.py",
    "transformers:Trainer._run_epoch": "training/trainer.py",
    "transformers:Trainer._save_checkpoint": "training/trainer.py",
    "transformers:Trainer._get_output_dir": "training/trainer.py",
    "transformers:Trainer.evaluation_loop": "training/trainer.py",
    "transformers:Trainer._prepare_inputs": "training/trainer.py",
    "transformers:TrainerCallback.on_pre_optimizer_step": "training/trainer.py (_StopOnNonFinite)",
    "transformers:PrinterCallback": "training/callbacks.py",
    "transformers:ProgressCallback": "training/callbacks.py",
    "transformers.models.mixtral.modeling_mixtral:load_balancing_loss_func": "model/parts.py (auxiliary_loss)",
    "accelerate.parallelism_config:ParallelismConfig.tp_enabled": "training/trainer.py (_refuse_unsupported)",
    "accelerate.parallelism_config:ParallelismConfig.cp_enabled": "training/trainer.py (_refuse_unsupported)",
    "accelerate.parallelism_config:ParallelismConfig.sp_enabled": "training/trainer.py (_refuse_unsupported)",
    "accelerate.commands.launch:launch_command": "cli/launch.py",
    "accelerate.commands.launch:launch_command_parser": "cli/launch.py",
}


@pytest.mark.parametrize("name", NAMES)
def test_the_name_exists(name: str) -> None:
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        assert hasattr(found, part), f"{name} is gone: look at src/selfaug/{NAMES[name]}"
        found = getattr(found, part)


def test_checkpoints_are_called_what_we_look_for() -> None:
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

    from selfaug.run.checkpoint import _NAME

    assert _NAME.fullmatch(f"{PREFIX_CHECKPOINT_DIR}-12"), "checkpoints have another name: look at run/checkpoint.py"


def test_fsdp_has_a_version() -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin

    names = {field.name for field in dataclasses.fields(FullyShardedDataParallelPlugin)}
    assert "fsdp_version" in names, "look at training/trainer.py (_refuse_unsupported)"


# ---- signatures that we override or call ----------------------------------------------------------------------------

SIGNATURES: dict[str, tuple[Any, list[str], str]] = {
    "SFTTrainer._prepare_dataset": (
        SFTTrainer._prepare_dataset,
        ["self", "dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name"],
        "training/trainer.py (_prepare_dataset), training/rows.py",
    ),
    "SFTTrainer.compute_loss": (
        SFTTrainer.compute_loss,
        ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
        "training/trainer.py (compute_loss)",
    ),
    "Trainer.get_batch_samples": (
        Trainer.get_batch_samples,
        ["self", "epoch_iterator", "num_batches", "device"],
        "training/trainer.py (get_batch_samples)",
    ),
    "Trainer._get_dataloader": (
        Trainer._get_dataloader,
        ["self", "dataset", "description", "batch_size", "sampler_fn", "is_training", "dataloader_key"],
        "training/trainer.py (_get_dataloader)",
    ),
    "Trainer._save_checkpoint": (
        Trainer._save_checkpoint, ["self", "model", "trial"], "training/trainer.py (_save_checkpoint)",
    ),
    "Trainer.log": (Trainer.log, ["self", "logs", "start_time"], "training/trainer.py (log)"),
    "load_balancing_loss_func": (
        importlib.import_module("transformers.models.mixtral.modeling_mixtral").load_balancing_loss_func,
        ["gate_logits", "num_experts", "top_k", "attention_mask"],
        "model/parts.py (auxiliary_loss)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_signature_is_as_it_was(name: str) -> None:
    function, expected, ours = SIGNATURES[name]
    assert parameters(function) == expected, f"{name} takes other arguments: look at src/selfaug/{ours}"


@pytest.mark.nightly
def test_the_whole_step_is_asked_for_before_it_is_trained() -> None:
    source = inspect.getsource(Trainer._run_epoch)
    ours = "look at training/trainer.py (get_batch_samples, compute_loss): the plan of a step is made there"
    for part in ("self.get_batch_samples(", "self.current_gradient_accumulation_steps =", "self.training_step("):
        assert part in source, f"Trainer._run_epoch has no {part!r}; {ours}"
    assert source.index("self.get_batch_samples(") < source.index("self.training_step("), ours
    assert source.index("on_pre_optimizer_step(") < source.index("self.optimizer.step()"), (
        "the weights move before the callback: look at training/trainer.py (_StopOnNonFinite)"
    )
    assert "self.loss_is_scaled_for_ga" in inspect.getsource(Trainer.training_step), (
        "gradient accumulation is scaled elsewhere: look at training/trainer.py (loss_is_scaled_for_ga)"
    )


@pytest.mark.nightly
def test_transformers_deletes_checkpoints_by_the_argument_that_we_take_away() -> None:
    source = inspect.getsource(Trainer._save_checkpoint)
    assert "self.args.save_total_limit" in source, (
        "old checkpoints are deleted otherwise, perhaps before the new one is sealed: look at training/trainer.py "
        "(_save_checkpoint)"
    )


def test_what_from_pretrained_takes_is_found_in_its_source() -> None:
    from selfaug.model.libraries import loading_options

    known = loading_options()
    # Named arguments, some of the others, and some that are dropped.
    assert {"revision", "token", "device_map", "attn_implementation", "dtype", "low_cpu_mem_usage"} <= known
    assert "devcie_map" not in known
