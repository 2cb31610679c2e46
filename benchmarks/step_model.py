"""What is the step that is timed: which model, which sequences, and the least arithmetic of it?"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from selfaug.planning.plan import draw

__all__ = [
    "ATTENTION_FLOPS",
    "RANK",
    "SEQUENCES",
    "SHAPES",
    "Shape",
    "Sizes",
    "base_model",
    "cut_to",
    "floor",
    "rows_of",
    "step_with_draws",
    "tokenizer",
]

RANK = 16
SEQUENCES = 8


@dataclass(frozen=True)
class Shape:
    """Of a model: the widths of its Qwen2 configuration, and how many layers the whole has."""

    name: str
    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    inner: int
    vocabulary: int
    tied: bool

    def config(self, layers: int) -> dict[str, Any]:
        """Arguments of transformers' Qwen2 configuration."""
        return {
            "num_hidden_layers": layers,
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "intermediate_size": self.inner,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": 32768,
        }


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("0.5B", 24, 896, 14, 2, 4864, 151936, True),
        Shape("7B", 28, 3584, 28, 4, 18944, 152064, False),
    )
}


@dataclass(frozen=True)
class Sizes:
    """Of the step: the model's shape, tokens of a sequence, and how many of them are the response."""

    shape: Shape
    tokens: int
    response: int

    @property
    def aligned_share(self) -> float:
        """p: the boundary predicts a response token, so it is not aligned."""
        return (self.tokens - self.response - 1) / self.tokens


def floor(sizes: Sizes, fraction: float, checkpointing: bool, *, cached: bool = False) -> float:
    """``1 + f·p·(F_body + 3·F_head) / (F + B)``; with a cached reference without ``F_body``.

    In FLOPs per token: F_body a forward pass through the layers without adapter, F_head = 2·V·H one projection, F the
    forward of the α = 0 step (layers with LoRA; the head on response tokens alone), B its backward (frozen weights pass
    a gradient on and take none; with checkpointing the layers' forward once more), p the share of aligned tokens, f the
    drawn share. Norms, activations and softmax count nothing.
    """
    shape, layers = sizes.shape, sizes.shape.layers
    narrow = shape.hidden // shape.heads * shape.key_value_heads
    linears = [(shape.hidden, shape.hidden)] * 2 + [(shape.hidden, narrow)] * 2 + [(shape.hidden, shape.inner)] * 3
    weights, adapter = sum(a * b for a, b in linears), sum(RANK * (a + b) for a, b in linears)
    attention = 2 * sizes.tokens * shape.hidden  # scores and mixing, each over half the sequence on average
    body = layers * (2 * weights + attention)
    tuned = body + layers * 2 * adapter
    head = 2 * shape.vocabulary * shape.hidden
    responses = sizes.response / sizes.tokens
    forward = tuned + responses * head
    backward = layers * (2 * weights + 4 * adapter + 2 * attention) + responses * head + (tuned if checkpointing else 0)
    reference = 0 if cached else body
    return float(1 + fraction * sizes.aligned_share * (reference + 3 * head) / (forward + backward))


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """FLOPs of causal attention: scores and mixing over half of all pairs; fewer key heads than query heads or not."""
    batch, heads, tokens, width = query
    return int(2 * batch * heads * tokens * key[-2] * width)


def _attention_backward(_: Any, query: Any, key: Any, value: Any, *__: Any, **___: Any) -> int:
    """Gradients to both factors of both products."""
    return 2 * _attention(query, key, value)


_aten = torch.ops.aten
# torch's own formulas refuse grouped heads, count pairs that causality leaves out, and know no kernel of a CPU.
ATTENTION_FLOPS: dict[Any, Callable[..., int]] = {
    _aten._scaled_dot_product_flash_attention: _attention,
    _aten._scaled_dot_product_efficient_attention: _attention,
    _aten._scaled_dot_product_cudnn_attention: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_backward: _attention_backward,
    _aten._scaled_dot_product_efficient_attention_backward: _attention_backward,
    _aten._scaled_dot_product_cudnn_attention_backward: _attention_backward,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def base_model(shape: Shape, layers: int, dtype: torch.dtype, device: str) -> Any:
    """The random model, made where it is used."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen2", **shape.config(layers))
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


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
    ids = torch.randint(0, sizes.shape.vocabulary, (SEQUENCES, sizes.tokens), generator=generator).tolist()
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
