"""How is the lab's model made? Qwen2 architecture, and a training that is a function of its settings alone.

A training that was killed goes on from its last checkpoint, and two trainings on one CPU machine with the same number
of threads give the same weights to the bit.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name for it
from torch import Tensor

from selfaug.errors import ConfigError
from selfaug.lab.curriculum import Example, batches
from selfaug.lab.tokenizer import make_tokenizer
from selfaug.lab.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

__all__ = [
    "SIZES",
    "Making",
    "Size",
    "is_finished",
    "make",
    "make_tokenizer",
    "new_model",
    "save",
    "weights_hash",
]

_STATE = "training.pt"  # the last checkpoint; gone when the model is finished


@dataclass(frozen=True)
class Size:
    """The shape of a model."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int


SIZES = {"base": Size(128, 4, 4, 384), "small": Size(96, 3, 3, 256)}


@dataclass(frozen=True)
class Making:
    """Everything that the weights are a function of, apart from this package and torch.

    Args:
        size: A key of :data:`SIZES`.
        steps: Optimiser steps.
        tokens: Of a step, about.
        learning_rate: Highest; it rises over 2 % of the steps, and falls to 0 over the last 40 %.
        vocabulary: Tokens.
        texts: Conversations that the tokenizer is made from.
        seed: Of weights, order and mixture.
        threads: Of the products; their number changes the order of sums.
    """

    size: str = "base"
    steps: int = 6000
    tokens: int = 2048
    learning_rate: float = 3e-3
    vocabulary: int = 1024
    texts: int = 20_000
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ConfigError(f"size={self.size!r} is not a size of the lab.", f"choose one of: {', '.join(SIZES)}.")

    def rate(self, step: int) -> float:
        """The learning rate of a step: up, flat, down to 0."""
        up, down = max(1, self.steps // 50), max(1, self.steps * 2 // 5)
        return self.learning_rate * min(1.0, (step + 1) / up, (self.steps - step) / down)


def new_model(size: Size, tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2ForCausalLM:
    """Random weights: a function of the seed."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config)


def weights_hash(model: torch.nn.Module) -> str:
    """sha256 over the names and bytes of all weights."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _tensors(examples: list[Example], pad: int) -> tuple[Tensor, Tensor]:
    longest = max(len(example.input_ids) for example in examples)
    ids_BT = torch.full((len(examples), longest), pad)
    weights_BT = torch.zeros(len(examples), longest)
    for row, example in enumerate(examples):
        ids_BT[row, : len(example.input_ids)] = torch.tensor(example.input_ids)
        weights_BT[row, : len(example.weights)] = torch.tensor(example.weights)
    return ids_BT, weights_BT


def loss_of(model: Qwen2ForCausalLM, ids_BT: Tensor, weights_BT: Tensor) -> Tensor:
    """``Σ weight · nll / Σ weight`` of the next tokens. Rows are padded at their end: causality hides it."""
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits[:, :-1]
    nll_N = F.cross_entropy(logits_BTV.flatten(0, 1).float(), ids_BT[:, 1:].flatten(), reduction="none")
    weights_N = weights_BT[:, 1:].flatten()
    return (nll_N * weights_N).sum() / weights_N.sum()


def make(
    folder: Path,
    making: Making,
    *,
    device: str = "cpu",
    checkpoint_every: int = 200,
    log: Callable[[dict[str, Any]], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> str:
    """Train a model into ``folder`` and return the hash of its weights.

    A folder that holds a checkpoint of the same settings is gone on with.

    Raises:
        ConfigError: If the folder holds a training with other settings.
    """
    world = World.make()
    folder.mkdir(parents=True, exist_ok=True)
    state_file, settings_file = folder / _STATE, folder / "making.json"
    if settings_file.exists() and json.loads(settings_file.read_text("utf-8")) != asdict(making):
        raise ConfigError(f"{folder} holds a model that is being made with other settings.", "name another folder.")
    settings_file.write_text(json.dumps(asdict(making), indent=2) + "\n", encoding="utf-8")
    tokenizer = make_tokenizer(world, making.vocabulary, making.texts, making.seed)
    model = new_model(SIZES[making.size], tokenizer, making.seed).to(device)
    threads = torch.get_num_threads()
    torch.set_num_threads(making.threads)
    try:
        _train(model, tokenizer, world, making, state_file, device, checkpoint_every, log, progress)
    finally:
        torch.set_num_threads(threads)
    save(model.eval(), tokenizer, folder)
    # Only now: a folder with this file is not finished, however far its weights were written.
    state_file.unlink()
    return weights_hash(model)


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a model that was made to its end."""
    return (folder / "model.safetensors").exists() and not (folder / _STATE).exists()


def _train(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    world: World,
    making: Making,
    state_file: Path,
    device: str,
    checkpoint_every: int,
    log: Callable[[dict[str, Any]], None] | None,
    progress: Callable[[int], None] | None,
) -> None:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": 0.05},
        {"params": [p for p in model.parameters() if p.ndim < 2]},
    ]
    optimizer = torch.optim.AdamW(groups, lr=making.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    first = 0
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = int(state["step"])
    model.train()
    data = batches(first, making.steps, making.tokens, world, tokenizer.backend_tokenizer, making.seed)
    began = time.perf_counter()
    read = 0
    for step, examples in enumerate(data, start=first):
        ids_BT, weights_BT = _tensors(examples, int(tokenizer.pad_token_id))
        for group in optimizer.param_groups:
            group["lr"] = making.rate(step)
        loss = loss_of(model, ids_BT.to(device), weights_BT.to(device))
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss of step {step} is {loss.item()}")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        read += ids_BT.numel()
        if log is not None and (step + 1) % 50 == 0:
            rate = read / (time.perf_counter() - began)
            log({"step": step + 1, "loss": round(loss.item(), 4), "tokens_per_second": round(rate)})
        if progress is not None:
            progress(step + 1)
        if (step + 1) % checkpoint_every == 0 or step + 1 == making.steps:
            _write(state_file, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1})


def _write(path: Path, state: dict[str, Any]) -> None:
    # Whole or as before: a kill in the middle leaves the last checkpoint.
    beside = path.with_suffix(".partial")
    torch.save(state, beside)
    beside.replace(path)


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """What `from_pretrained` loads."""
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
