"""What does a model take on each GPU, by the formulas of `selfaug train --dry_run`?

python benchmarks/memory_table.py
python benchmarks/memory_table.py --model qwen2.5-7b --devices 1 --room 24 --dropout --tokens 4096
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from selfaug.training.estimate import FOUR_BIT, MicroBatch, ModelSizes, Setup, estimate_flops, estimate_memory

MODELS = {
    "llama3-70b": ModelSizes(80, 8192, 8192, 1024, 28672, 128256, tied=False),
    "qwen2.5-7b": ModelSizes(28, 3584, 3584, 512, 18944, 152064, tied=False),
    "llama3.1-8b": ModelSizes(32, 4096, 4096, 1024, 14336, 128256, tied=False),
}
RATE = 0.4 * 989e12  # FLOPs a second: 40 % of an H100's dense bfloat16 peak
PARTS = {
    "weights": ("weights",),
    "frozen copy": ("frozen",),
    "adapter, optimiser, gradients": ("adapter", "optimizer", "gradients"),
    "activations": ("activations",),
    "logits": ("logits",),
    "gathered": ("gathered",),
}


def setups(devices: int, *, dropout: bool) -> dict[str, Setup]:
    """Checkpointing, and FSDP2 on several devices; of all weights once in bfloat16, once in float32 with autocast."""
    lora = Setup(16, linear_bytes=2, rest_bytes=2, compute_bytes=2, checkpointing=True, block_bytes=448 * 2**20,
                 devices=devices, sharding="all" if devices > 1 else "none",
                 dropout_bytes=1 if dropout else None)  # fmt: skip
    full = replace(lora, rank=None, trained_bytes=2, averages_bytes=4.0)
    return {
        "LoRA": lora,
        "QLoRA (nf4)": replace(lora, linear_bytes=FOUR_BIT, trained_bytes=2, averages_bytes=4.0),
        "full, bfloat16": full,
        "full, float32": replace(full, linear_bytes=4, rest_bytes=4, trained_bytes=4, averages_bytes=8.0),
    }


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="llama3-70b", help="Shape of the model.")
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 16], help="Numbers of GPUs.")
    parser.add_argument("--room", type=float, default=80, help="GB of a GPU.")
    parser.add_argument("--dropout", action="store_true", help="With dropout of the adapter.")
    parser.add_argument("--tokens", type=int, default=8192, help="Tokens of a row.")
    parser.add_argument("--responses", type=int, default=256, help="Response tokens of it.")
    parser.add_argument("--rows", type=int, default=1, help="Rows of a micro-batch of a device.")
    parser.add_argument("--json", type=Path, help="Write every figure here.")
    given = parser.parse_args()
    model = MODELS[given.model]
    aligned = given.rows * (given.tokens - given.responses - 1)
    batch = MicroBatch(given.rows, given.tokens, given.rows * given.responses, aligned, aligned)
    head = ["GPUs", "trained", "alignment", *PARTS, "together", "largest part", "PFLOPs", "s at 40 %"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    figures = []
    for devices in given.devices:
        for name, setup in setups(devices, dropout=given.dropout).items():
            online = "base" if setup.rank is not None else "path"
            for shown, reference in (("none", "none"), ("online", online), ("cached", "cached")):
                chosen = replace(setup, reference=reference, frozen_head=reference == "cached")  # as a cache needs
                memory, flops = estimate_memory(model, chosen, batch), estimate_flops(model, chosen, batch)
                parts = {part: sum(getattr(memory, each) for each in of) for part, of in PARTS.items()}
                total = f"{memory.total / 1e9:.1f}"
                cells = [str(devices), name, shown, *(f"{size / 1e9:.1f}" for size in parts.values())]
                cells.append(total if memory.total <= given.room * 1e9 else f"**{total}**")
                cells += [max(parts, key=lambda part: parts[part]), f"{flops.total / 1e15:.2f}"]
                cells.append(f"{flops.total / RATE:.1f}")
                print(f"| {' | '.join(cells)} |")
                figures.append(
                    {"devices": devices, "trained": name, "alignment": shown, **asdict(memory), **asdict(flops)}
                )
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
