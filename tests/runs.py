"""Finished run folders without a training: the project's own files around an adapter of chosen weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfaug.common.weights import weight_files, weights_hash
from selfaug.data.prompts import Renderer
from selfaug.run.folder import RunFolder
from selfaug.run.manifest import build_manifest, write_manifest
from tests.models import perturb_adapter


def finished_run(
    path: Path, model: Path, *, perturb: float = 0.1, seed: int = 1, full: bool = False, **lora: Any
) -> RunFolder:
    """A run of ``model`` with an adapter of random weights (``perturb=0``: of zero steps), or with ``full`` without.

    Args:
        path: Of the run folder.
        model: Folder of the base model.
        perturb: Size of the adapter's weights, or of what is added to each weight of a whole model.
        seed: Of these.
        full: The whole model was trained.
        lora: Settings of the adapter.
    """
    config = {"model_name_or_path": str(model), "use_peft": not full, "seed": 0, "method": "selfaug", "max_length": 512}
    run = RunFolder(path)
    run.create(config)
    tokenizer = AutoTokenizer.from_pretrained(model)
    base = AutoModelForCausalLM.from_pretrained(model)
    final = run.model if full else run.adapter
    if full:
        with torch.no_grad():
            generator = torch.Generator().manual_seed(seed)
            for parameter in base.parameters():
                parameter.add_(perturb * 0.1 * torch.randn(parameter.shape, generator=generator))
        base.save_pretrained(final)
    else:
        settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora}
        tuned = get_peft_model(base, LoraConfig(**settings))
        if perturb:
            perturb_adapter(tuned, seed=seed, scale=perturb)
        tuned.save_pretrained(final)
    tokenizer.save_pretrained(final)
    Renderer.for_tokenizer(tokenizer).save(final)
    manifest = build_manifest(
        command=["selfaug", "train"],
        config=config,
        data={},
        model={"name": str(model), "revision": "main", "weights": weights_hash(weight_files(model))},
        tokenizer=tokenizer,
        seeds={"seed": 0},
    )
    weights = weight_files(final) if full else [final / "adapter_model.safetensors"]
    write_manifest(run.manifest, {**manifest, "finished": {"weights": weights_hash(weights, full=True), "steps": 0}})
    return run
