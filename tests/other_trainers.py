"""A program that trains as people do who have never heard of us: plain PEFT with `Trainer`, and TRL's `SFTTrainer`.

    python tests/other_trainers.py MODEL ROWS.jsonl OUT

writes ``OUT/trainer`` (checkpoints of a plain `Trainer`, with an adapter alone) and ``OUT/trl`` (TRL's output, with the
tokenizer beside the adapter). Nothing of ours is imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(model_name: str, rows_file: str, out: str) -> None:
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
    from trl import SFTConfig, SFTTrainer

    rows = [json.loads(line) for line in Path(rows_file).read_text(encoding="utf-8").splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    prompts = [f"{row['documents'][0]['text']}\n\nQuestion: {row['question']}\nAnswer:" for row in rows]
    shared: dict[str, Any] = {
        "learning_rate": 2e-2, "max_steps": 4, "per_device_train_batch_size": 4, "save_strategy": "steps",
        "save_steps": 2, "report_to": [], "use_cpu": True, "seed": 1, "disable_tqdm": True,
    }  # fmt: skip
    lora: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}

    texts = [f"{prompt} {row['answer']}" for prompt, row in zip(prompts, rows, strict=True)]
    encoded = [tokenizer(text)["input_ids"] for text in texts]

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in batch)
        ids = torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in batch])
        mask = torch.tensor([[1] * len(r["input_ids"]) + [0] * (longest - len(r["input_ids"])) for r in batch])
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}

    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(model_name), LoraConfig(**lora))
    arguments = TrainingArguments(output_dir=f"{out}/trainer", remove_unused_columns=False, **shared)
    Trainer(peft, arguments, train_dataset=[{"input_ids": ids} for ids in encoded], data_collator=collate).train()  # type: ignore[arg-type]

    data = Dataset.from_list(
        [{"prompt": prompt, "completion": f" {row['answer']}"} for prompt, row in zip(prompts, rows, strict=True)]
    )
    trl = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(model_name),
        SFTConfig(output_dir=f"{out}/trl", max_length=256, **shared),
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=LoraConfig(**lora),
    )
    trl.train()
    trl.save_model(f"{out}/trl")
    ours = [name for name in sys.modules if name.split(".")[0] == "selfaug"]
    assert not ours, ours


if __name__ == "__main__":
    main(*sys.argv[1:])
