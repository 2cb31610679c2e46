"""One rank of a sharded run, or the only one of a plain run: trains a few steps and leaves losses and the adapter.

Started by `accelerate launch` or plain Python: `sharded.py SETTINGS.json FOLDER`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from datasets import Dataset

from selfaug import SelfAugConfig, SelfAugTrainer
from tests.integration.steps import SEQUENCES
from tests.models import lora_config, tiny, tiny_tokenizer


def main(settings_file: Path, folder: Path) -> None:
    settings = json.loads(settings_file.read_text())
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rows = [{"input_ids": list(ids), "labels": list(labels)} for ids, labels in SEQUENCES["single-turn"]] * 4
    args = SelfAugConfig(
        str(folder / "run"),
        per_device_train_batch_size=4 // world,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        max_steps=5,
        max_length=256,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=False,
        **settings,
    )
    trainer = SelfAugTrainer(
        tiny("llama"),
        args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
        peft_config=lora_config("llama"),
    )
    trainer.train()
    trainer.save_model(str(folder / "adapter"))
    if trainer.accelerator.is_main_process:
        losses = [log for log in trainer.state.log_history if "loss" in log]
        (folder / "losses.json").write_text(json.dumps(losses))
    trainer.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
