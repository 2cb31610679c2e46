"""Does a finished run hold whole, loadable weights, whatever its checkpoints are made of?"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.cli.conftest import records, save_model, write_rows
from tests.distributed.launching import environment, launcher

pytestmark = [pytest.mark.distributed, pytest.mark.nightly]

CLI = Path(__file__).with_name("fsdp_cli.py")


def test_checkpoints_in_shards_and_a_whole_export(tmp_path: Path) -> None:
    """With these checkpoints transformers writes no weights, and the run ended with exit code 0 all the same."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = save_model(tmp_path / "model")
    data = write_rows(tmp_path / "rows.jsonl", records(16))
    words = launcher("fsdp2", tmp_path, fsdp_state_dict_type="SHARDED_STATE_DICT")
    words += [str(CLI), "train", "--model_name_or_path", str(model), "--dataset_name", str(data)]
    words += ["--output_dir", str(tmp_path / "run"), "--max_steps", "2", "--lora_r", "4", "--max_length", "256"]
    words += ["--per_device_train_batch_size", "2", "--learning_rate", "1e-2"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-2"
    assert list(checkpoint.glob("pytorch_model_fsdp_0/*.distcp")), "the checkpoint is not in shards"
    assert not list(checkpoint.glob("*.safetensors"))
    weights = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    moved = [name for name, weight in weights.items() if "lora_B" in name and weight.abs().max() > 0]
    assert len(moved) == 14, "every layer of two has seven linear ones"
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), tmp_path / "run" / "adapter")
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            assert parameter.equal(weights[name.replace(".default", "")])
