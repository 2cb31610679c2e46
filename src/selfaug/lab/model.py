"""How is the lab's model made? Qwen2 architecture, and a training that is a function of its settings alone.

A training that was killed goes on from its last checkpoint, and two trainings on one CPU machine with the same number
of threads give the same weights to the bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from selfaug.common.errors import ConfigError
from selfaug.common.files import json_of_ours, write_durably
from selfaug.lab.card import CARD, LOG, Journal, card
from selfaug.lab.start import start
from selfaug.lab.tokenizer import make_tokenizer
from selfaug.lab.training import Training
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

_PRECISIONS = ("float32", "bfloat16")
_STATE = "training.pt"  # the last checkpoint; gone when the model is finished


@dataclass(frozen=True)
class Size:
    """The shape of a model."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int


# Five heads and more: so many places back must the second layer see to find what a question asks for (lab/start.py).
SIZES = {"small": Size(160, 3, 5, 256), "base": Size(160, 4, 5, 384), "large": Size(192, 6, 6, 512)}


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
        precision: Of the products: ``float32`` or ``bfloat16`` (autocast; the weights stay in float32).
    """

    size: str = "base"
    steps: int = 9000
    tokens: int = 2048
    learning_rate: float = 3e-3
    vocabulary: int = 1024
    texts: int = 20_000
    seed: int = 0
    threads: int = 1
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ConfigError(f"size={self.size!r} is not a size of the lab.", f"choose one of: {', '.join(SIZES)}.")
        if self.precision not in _PRECISIONS:
            raise ConfigError(
                f"precision={self.precision!r} is not one of the lab's.", f"choose one of: {', '.join(_PRECISIONS)}."
            )

    def rate(self, step: int) -> float:
        """The learning rate of a step: up, flat, down to 0."""
        up, down = max(1, self.steps // 50), max(1, self.steps * 2 // 5)
        return self.learning_rate * min(1.0, (step + 1) / up, (self.steps - step) / down)


def new_model(size: Size, tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2ForCausalLM:
    """Weights that nothing was learnt with yet (:mod:`selfaug.lab.start`): a function of the seed."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=2048,
        # Rows of unit length: at such widths the usual 0.02 leaves all layers near nothing for hundreds of steps.
        initializer_range=size.hidden**-0.5,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},  # as Qwen2.5: slow enough to match by content
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
        start(model)
        return model


def weights_hash(model: torch.nn.Module) -> str:
    """sha256 over the names and bytes of all weights."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def make(
    folder: Path,
    making: Making,
    *,
    device: str = "cpu",
    workers: int = 0,
    checkpoint_every: int = 200,
    probe_every: int = 0,
    log: Callable[[dict[str, Any]], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> str:
    """Train a model into ``folder`` and return the hash of its weights, which are stored in bfloat16.

    A folder that holds a checkpoint of the same settings is gone on with.

    Args:
        folder: Of the model.
        making: What the weights are a function of.
        device: Where the training runs; only on a CPU are the weights the same to the bit each time.
        workers: Processes besides this one that make batches; their number changes nothing.
        checkpoint_every: Steps.
        probe_every: Steps after which the skills are tested on 100 items each; 0: never.
        log: Gets what is measured on the way.
        progress: Gets the steps that are done.

    Raises:
        ConfigError: If the folder holds a training with other settings.
        FloatingPointError: If the loss is no number.
    """
    world = World.make()
    folder.mkdir(parents=True, exist_ok=True)
    state_file, settings_file = folder / _STATE, folder / "making.json"
    if json_of_ours(settings_file) not in (None, asdict(making)):
        raise ConfigError(f"{folder} holds a model that is being made with other settings.", "name another folder.")
    write_durably(settings_file, json.dumps(asdict(making), indent=2) + "\n")
    tokenizer = make_tokenizer(world, making.vocabulary, making.texts, making.seed)
    model = new_model(SIZES[making.size], tokenizer, making.seed).to(device)
    threads = torch.get_num_threads()
    torch.set_num_threads(making.threads)
    training = Training(model, tokenizer, world, making, state_file, checkpoint_every, probe_every)
    journal = Journal(folder / LOG)

    def note(entry: dict[str, Any]) -> None:
        journal.add(entry)
        if log is not None:
            log(entry)

    try:
        training.run(workers, note, progress or (lambda step: None))
    finally:
        torch.set_num_threads(threads)
    digest = save(model.eval(), tokenizer, folder)
    text = card(making, digest, model.num_parameters(), journal.close())
    write_durably(folder / CARD, text)
    # Only now: a folder with this file is not finished, however far its weights were written.
    state_file.unlink()
    return digest


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a model that was made to its end."""
    return (folder / "model.safetensors").exists() and not (folder / _STATE).exists()


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> str:
    """What `from_pretrained` loads, into float32: the weights lie there in half the bytes. Returns their hash."""
    model.generation_config.do_sample = False
    model.to(torch.bfloat16).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(folder)
    return weights_hash(model)
