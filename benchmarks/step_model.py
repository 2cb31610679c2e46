"""What is the step that is timed: which model, which sequences, and the least arithmetic of it?"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from selfaug.plan import draw

__all__ = [
    "LAYERS",
    "RANK",
    "SEQUENCES",
    "Sizes",
    "base_model",
    "cut_to",
    "floor",
    "rows_of",
    "step_with_draws",
    "tokenizer",
]

SHAPE: dict[str, Any] = {
    "hidden_size": 896,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32768,
}
LAYERS = 24
RANK = 16
SEQUENCES = 8


@dataclass(frozen=True)
class Sizes:
    """Of the step: tokens of a sequence, and how many of them are the response."""

    tokens: int
    response: int

    @property
    def aligned_share(self) -> float:
        """p: the boundary predicts a response token, so it is not aligned."""
        return (self.tokens - self.response - 1) / self.tokens


def floor(sizes: Sizes, fraction: float, layers: int, checkpointing: bool) -> float:
    """``1 + f·p·(F_body + 3·F_head) / (F + B)``.

    In FLOPs per token: F_body a forward pass through the layers without adapter, F_head = 2·V·H one projection, F the
    forward of the α = 0 step (layers with LoRA; the head on response tokens alone), B its backward (frozen weights pass
    a gradient on and take none; with checkpointing the layers' forward once more), p the share of aligned tokens, f the
    drawn share. Norms, activations and softmax count nothing.
    """
    hidden, inner, vocabulary = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["vocab_size"]
    narrow = hidden // SHAPE["num_attention_heads"] * SHAPE["num_key_value_heads"]
    linears = [(hidden, hidden)] * 2 + [(hidden, narrow)] * 2 + [(hidden, inner)] * 3
    weights, adapter = sum(a * b for a, b in linears), sum(RANK * (a + b) for a, b in linears)
    attention = 2 * sizes.tokens * hidden  # scores and mixing, each over half the sequence on average
    body = layers * (2 * weights + attention)
    tuned = body + layers * 2 * adapter
    head = 2 * vocabulary * hidden
    responses = sizes.response / sizes.tokens
    forward = tuned + responses * head
    backward = layers * (2 * weights + 4 * adapter + 2 * attention) + responses * head + (tuned if checkpointing else 0)
    return float(1 + fraction * sizes.aligned_share * (body + 3 * head) / (forward + backward))


def base_model(layers: int, dtype: str) -> Any:
    """The random model, its weights float32 or bfloat16."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen2", num_hidden_layers=layers, **SHAPE)
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if dtype == "bfloat16" else torch.float32)


def cut_to(model: Any, layers: int) -> Any:
    """A model of its own with the first ``layers`` layers and the same frozen weights in memory."""
    shared = {id(p): p for p in model.parameters()}
    cut = copy.deepcopy(model, shared)
    cut.model.layers = cut.model.layers[:layers]
    cut.config.num_hidden_layers = layers
    cut.config.layer_types = cut.config.layer_types[:layers]
    return cut


def rows_of(sizes: Sizes) -> list[dict[str, list[int]]]:
    """The sequences of one step: random tokens, the response at the end."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, SHAPE["vocab_size"], (SEQUENCES, sizes.tokens), generator=generator).tolist()
    prompt = sizes.tokens - sizes.response
    return [{"input_ids": row, "labels": [-100] * prompt + row[prompt:]} for row in ids]


def step_with_draws(rows: list[dict[str, list[int]]], fraction: float) -> int:
    """The number of a step in which exactly ``fraction`` of the sequences are drawn."""
    wanted = round(fraction * len(rows))
    for step in range(100_000):
        if sum(draw(0, step, torch.tensor(row["input_ids"]), fraction) for row in rows) == wanted:
            return step
    raise RuntimeError(f"no step draws {wanted} of {len(rows)} sequences: the draw is broken")


def tokenizer() -> Any:
    """The trainer asks for one; the rows are token ids already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="</s>",
    )
