"""The cells of the sharding table: what is run, and how a cell is trained in this process.

As a script this is one rank of a launch, or the only process: `cells.py KIND CELLS.json MODEL FOLDER` trains each named
cell and writes `FOLDER/<cell>/`: `result.json` and the exported weights.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

KINDS = ("ddp", "fsdp2", "zero2", "zero3")
ADAPTERS = ("lora", "dora", "qlora4", "qlora8", "full")
REFERENCES = ("base", "initial", "path", "cached")
STEPS = 4


@dataclass(frozen=True)
class Cell:
    """One combination of settings."""

    adapter: str
    reference: str
    fraction: float = 1.0
    layout: str = "padding"
    checkpointing: str = "off"
    slice: int = 0
    freeze_head: bool = False
    method: str = "selfaug"

    @property
    def name(self) -> str:
        parts = [self.adapter, self.reference]
        parts += [self.method] if self.method != "selfaug" else []
        parts += [f"f{self.fraction}"] if self.fraction != 1 else []
        parts += [self.layout] if self.layout != "padding" else []
        parts += [f"ac-{self.checkpointing}"] if self.checkpointing != "off" else []
        parts += [f"slice{self.slice}"] if self.slice else []
        return "-".join(parts + (["frozen-head"] if self.freeze_head else []))


def table() -> list[Cell]:
    """Every adapter with every reference; a cache serves full fine-tuning with a frozen head alone."""
    cells = []
    for adapter in ADAPTERS:
        for reference in REFERENCES:
            frozen = adapter == "full" and reference == "cached"
            cells.append(Cell(adapter, reference, freeze_head=frozen))
    return cells


# A pairwise covering array of {whole, an eighth} × {padding, packing, padding-free} × {checkpointing off, on} × {base,
# initial}, with an adapter: every two values stand together in a case. FSDP's own checkpointing goes with full
# fine-tuning alone.
PAIRS = [
    Cell("lora", "base", 1.0, "padding", "on"),
    Cell("lora", "initial", 0.125, "padding", "off"),
    Cell("lora", "initial", 1.0, "packing", "off"),
    Cell("lora", "base", 0.125, "packing", "on"),
    Cell("lora", "base", 0.125, "padding-free", "off"),
    Cell("lora", "initial", 1.0, "padding-free", "on"),
    Cell("full", "path", 1.0, "padding", "own"),
    Cell("full", "path", 0.125, "packing", "own"),
    Cell("full", "path", 1.0, "padding-free", "own"),
    Cell("lora", "initial", 0.125, "padding", "own"),
    Cell("lora", "initial", 1.0, slice=6),
    Cell("lora", "base", 0.125, slice=6),
]

PLAIN = Cell("lora", "base", method="sft")
# Methods that compare or change other things than prompts, with what a log shows of them.
METHODS = {
    Cell("lora", "base", method="selfaug+wise-ft"): "alignment",
    Cell("lora", "base", method="align-v"): "activation",
    Cell("lora", "base", method="kl-response"): "kl_response",
    Cell("lora", "base", method="talr"): "nll",
    Cell("lora", "base", method="finch"): "nll",
}


def settings(cell: Cell, model: str, folder: Path, world: int) -> dict[str, Any]:
    """The arguments of `SelfAugConfig` for a cell: 8 sequences a step, in two micro-batches over all ranks."""
    chosen: dict[str, Any] = {
        "per_device_train_batch_size": 4 // world,
        "gradient_accumulation_steps": 2,
        "max_steps": STEPS,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "weight_decay": 0.0,
        # Adam divides by the root of a mean square: with its default 1e-8, a gradient that is rounding alone would move
        # a weight as far as any other.
        "adam_epsilon": 1e-4,
        "max_length": 64,
        "bf16": False,
        "gradient_checkpointing": cell.checkpointing == "on",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "align_fraction": cell.fraction,
        "reference_slice": cell.slice,
        "freeze_head": cell.freeze_head,
        "method": cell.method,
        "packing": cell.layout == "packing",
        "padding_free": cell.layout == "padding-free",
        "seed": 7,
    }
    if cell.layout == "padding-free":
        chosen["max_length"] = None
    if cell.reference == "cached":
        chosen["reference_cache"] = str(folder / "cache")
    else:
        chosen["reference"] = model if cell.reference == "path" else cell.reference
    return chosen


def quantisation(adapter: str) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    if adapter == "qlora4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.float32,
            bnb_4bit_quant_storage=getattr(torch, os.environ.get("QUANT_STORAGE", "float32")),
        )
    return BitsAndBytesConfig(load_in_8bit=True) if adapter == "qlora8" else None


def rows(cell: Cell) -> list[dict[str, Any]]:
    """The data: enough that no step meets the end of an epoch, where ranks are given rows once more."""
    from tests.integration.steps import SEQUENCES

    chosen = [*SEQUENCES["single-turn"], *SEQUENCES["multi-turn"]]
    return [{"input_ids": list(ids), "labels": list(labels)} for ids, labels in chosen] * (
        16 if cell.layout == "packing" else 4
    )


def make_trainer(cell: Cell, model: str, folder: Path, **changes: Any) -> Any:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer

    from selfaug import SelfAugConfig, SelfAugTrainer

    world = int(os.environ.get("WORLD_SIZE", "1"))
    torch.manual_seed(0)
    adapter = LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=cell.adapter == "dora"
    )
    args = SelfAugConfig(str(folder / "run"), **{**settings(cell, model, folder, world), **changes})
    args.model_init_kwargs = {"dtype": "float32"}
    return SelfAugTrainer(
        model,
        args,
        train_dataset=Dataset.from_list(rows(cell)),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=None if cell.adapter == "full" else adapter,
        quantization_config=quantisation(cell.adapter),
    )


def train(kind: str, cell: Cell, model: str, folder: Path) -> dict[str, Any]:
    """Train a cell and export it; the first rank's view of what happened."""
    from selfaug.common.errors import UserError
    from tests.distributed.fsdp_on_cpu import assert_sharded

    since = time.perf_counter()
    try:
        trainer = make_trainer(cell, model, folder)
        trainer.train()
        if kind != "whole":
            assert_sharded(trainer, kind)
        trainer.save_model(str(folder / "export"))
    except UserError as refused:
        return {"refused": refused.message, "hint": refused.hint}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"[:600], "trace": traceback.format_exc()[-4000:]}
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {"losses": logs, "seconds": round(time.perf_counter() - since, 1)}


def main(kind: str, cells_file: Path, model: str, folder: Path) -> None:
    import torch

    from tests.distributed.fsdp_on_cpu import shard_on_cpu

    if kind == "fsdp2":
        shard_on_cpu()
    for entry in json.loads(cells_file.read_text()):
        cell = Cell(**entry)
        own = folder / cell.name
        own.mkdir(parents=True, exist_ok=True)
        result = train(kind, cell, model, own)
        if int(os.environ.get("RANK", "0")) == 0:
            (own / "result.json").write_text(json.dumps(result))
        elif "failed" in result:
            (own / "result-rank1.json").write_text(json.dumps(result))
        if torch.distributed.is_initialized():
            torch.distributed.barrier()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
