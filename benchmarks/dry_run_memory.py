"""Is the memory that `selfaug train --dry_run` names the one that its steps take? Eight settings on a CPU."""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import Demand, add_common_options, report, table

from selfaug.lab import shipped

WIDTHS = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 16384,
    "max_position_embeddings": 2048,
}
# What a setting adds to the command line, and the number of words of a document.
SETTINGS = {
    "LoRA, padded": ("--per_device_train_batch_size 4 --gradient_checkpointing false", 60),
    "LoRA, checkpointing": ("--per_device_train_batch_size 8 --gradient_checkpointing true", 120),
    "full, frozen copy": (
        "--per_device_train_batch_size 2 --gradient_checkpointing false --use_peft false --reference MODEL",
        60,
    ),
    "LoRA, packing, an eighth": (
        "--per_device_train_batch_size 1 --gradient_checkpointing false --packing true --max_length 512 "
        "--align_fraction 0.125",
        30,
    ),
    # Chosen after dropout had been added to the formula, and before they were run.
    "LoRA of rank 64, long rows": ("--per_device_train_batch_size 2 --gradient_checkpointing false --lora_r 64", 150),
    "LoRA without dropout": ("--per_device_train_batch_size 6 --gradient_checkpointing false --lora_dropout 0", 40),
    "LoRA, packing, checkpointing": (
        "--per_device_train_batch_size 2 --gradient_checkpointing true --packing true --max_length 768",
        60,
    ),
    "full, frozen copy, checkpointing": (
        "--per_device_train_batch_size 4 --gradient_checkpointing true --use_peft false --reference MODEL",
        100,
    ),
}


def make_model(folder: Path) -> None:
    """A random Llama of 55 million weights, with the tokenizer of the lab."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(shipped.resolve("lab"))
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    LlamaForCausalLM(LlamaConfig(**WIDTHS, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_rows(path: Path, words: int) -> None:
    """48 records with two documents of up to ``words`` words."""
    draw = random.Random(0)
    pool = ["the", "cat", "sat", "on", "a", "mat", "and", "the", "dog", "ran", "far", "from", "it"]
    with path.open("w", encoding="utf-8") as stream:
        for i in range(48):
            documents = [" ".join(draw.choices(pool, k=draw.randint(words // 2, words))) for _ in range(2)]
            stream.write(json.dumps({"question": f"who sat {i}?", "documents": documents, "answer": "the cat"}) + "\n")


def size(text: str) -> float:
    """Bytes of a printed size."""
    number, unit = text.replace(",", "").split()
    return float(number) * {"MiB": 2**20, "GiB": 2**30}[unit]


def main() -> int:
    """Run the settings one after the other, each in its own process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    add_common_options(parser)
    arguments = parser.parse_args()
    rows, demands, printed = [], [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        # glibc keeps what was freed, up to several times what is in use: with these limits it gives it back.
        keeps_nothing = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), "131072")
        environment = {**os.environ, **keeps_nothing, "HF_DATASETS_CACHE": str(folder / "cache"),
                       "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
        for setting in arguments.settings:
            flags, words = SETTINGS[setting]
            make_rows(folder / "rows.jsonl", words)
            command = [
                *(sys.executable, "-m", "selfaug", "train", "--dry_run", "--dtype", "float32", "--use_cpu", "true"),
                *("--model_name_or_path", str(folder / "model"), "--dataset_name", str(folder / "rows.jsonl")),
                *("--output_dir", str(folder / "run")),
                *flags.replace("MODEL", str(folder / "model")).split(),
            ]
            ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if ran.returncode:
                print(ran.stderr)
                return 1
            estimate = size(re.findall(r"together +([\d.,]+ [GM]iB)", ran.stdout)[0])
            measured = size(re.findall(r"took ([\d.,]+ [GM]iB)", ran.stdout)[0])
            rows.append([setting, f"{estimate / 2**20:,.0f}", f"{measured / 2**20:,.0f}", f"{estimate / measured:.3f}"])
            demands.append(
                Demand(f"{setting}: |estimate / peak - 1|", abs(estimate / measured - 1), 0.15, at_least=False)
            )
            printed[setting] = ran.stdout
            print(ran.stdout, flush=True)
        assert not (folder / "run").exists()
    text = [table(["setting", "estimate (MiB)", "peak (MiB)", "ratio"], rows)]
    return report(text, demands, {"printed": printed}, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
