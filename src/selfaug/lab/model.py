"""The lab's models: Qwen2 architecture, trained as a function of their settings alone.

An interrupted training resumes from its last checkpoint. Two trainings on one CPU machine with the same number of
threads give bit-equal weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from selfaug.common.errors import ConfigError
from selfaug.common.files import json_of_ours, write_durably
from selfaug.lab.card import CARD, LOG, Journal, card
from selfaug.lab.making import SIZES, Making, Size
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

_STATE = "training.pt"  # the last checkpoint; gone when the model is finished


def new_model(size: Size, tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2ForCausalLM:
    """Return an untrained model with the weights of :mod:`selfaug.lab.start`, a function of the seed."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=2048,
        # Gives rows of unit norm: at such widths, with the usual 0.02 layers add almost nothing for hundreds of steps.
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
    """Return the sha256 of the names and bytes of all weights."""
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

    A training with the same settings resumes from a checkpoint in the folder.

    Args:
        folder: Folder of the model.
        making: Settings that determine the weights.
        device: Device of the training; weights are bit-reproducible only on a CPU.
        workers: Number of further processes that make batches; it does not change the weights.
        checkpoint_every: Number of steps between checkpoints.
        probe_every: Number of steps between tests of the skills on 100 items each; 0 for none.
        log: Function that receives measurements.
        progress: Function that receives the number of finished steps.

    Raises:
        ConfigError: If the folder contains a training with other settings.
        FloatingPointError: If the loss is not finite.
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
    # Last of all: while this file exists, the folder does not count as finished.
    state_file.unlink()
    return digest


def is_finished(folder: Path) -> bool:
    """Whether a folder contains a finished model."""
    return (folder / "model.safetensors").exists() and not (folder / _STATE).exists()


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> str:
    """Save the model for `from_pretrained`, with bfloat16 weights that load as float32, and return their hash."""
    model.generation_config.do_sample = False
    model.to(torch.bfloat16).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(folder)
    return weights_hash(model)
