"""Which small random models do the tests train, one per architecture that matters?

Every model has two layers, at most 64 hidden units and an odd vocabulary; its weights are a function of (architecture,
seed), so a second call gives the same base model without copying anything. Initial weights are large enough that the
next-token distributions differ between positions: with the default 0.02 every distribution is nearly uniform, and a
wrong loss would hide under the tolerance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

VOCAB = 97
PAD, BOS, EOS = 0, 1, 2

_COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.25,
    "tie_word_embeddings": False,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
_GEMMA: dict[str, Any] = {"query_pre_attn_scalar": 8, "sliding_window": 8, "tie_word_embeddings": True}
_MOE: dict[str, Any] = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

# Per architecture: what its own configuration needs on top, and what makes its head special.
_SPECIFIC: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "mistral": {"sliding_window": 8},
    "gemma2": {**_GEMMA, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 20.0},
    "gemma3_text": {**_GEMMA, "sliding_window_pattern": 2},
    "phi3": {"original_max_position_embeddings": 512},
    "cohere": {"logit_scale": 0.5, "tie_word_embeddings": True},
    "cohere2": {"logit_scale": 0.5, "tie_word_embeddings": True, "sliding_window": 8, "sliding_window_pattern": 2},
    "granite": {"logits_scaling": 2.0, "residual_multiplier": 0.7, "embedding_multiplier": 3.0},
    "falcon_h1": {
        "lm_head_multiplier": 0.6,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_chunk_size": 8,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "qwen3_moe": _MOE,
    "mixtral": _MOE,
    "olmoe": _MOE,
    "olmo2": {},
    "smollm3": {"no_rope_layer_interval": 2},
}
ARCHITECTURES = tuple(_SPECIFIC)
SOFT_CAPPED = ("gemma2",)
SCALED = ("cohere", "cohere2", "granite", "falcon_h1")
MIXTURES = ("qwen3_moe", "mixtral", "olmoe")
# The grouped matrix products that transformers prefers for experts have no float64 kernel.
_EAGER_EXPERTS = {"experts_implementation": "eager"}
# PEFT refuses LoRA on these modules of Mamba mixers by name, `all-linear` included.
_MAMBA_EXCLUDED = ["out_proj", "conv1d"]


def tiny(arch: str, vocab: int = VOCAB, seed: int = 0, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A random causal model of ``arch`` in evaluation mode; the same weights for the same (arch, vocab, seed)."""
    settings = {**_COMMON, **_SPECIFIC[arch], "vocab_size": vocab}
    config = AutoConfig.for_model(arch, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, **(_EAGER_EXPERTS if arch in MIXTURES else {}))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Constant initial values (norms, biases) would hide a mixed-up or skipped one.
                if parameter.ndim == 1 and ("norm" in name or name.endswith("bias")):
                    parameter.add_(0.1 * torch.randn_like(parameter))
    model.generation_config.pad_token_id = PAD
    return model.to(dtype).eval()


def with_lora(
    model: PreTrainedModel,
    r: int = 4,
    targets: str | list[str] = "all-linear",
    perturb: bool = True,
    seed: int = 1,
) -> PeftModel:
    """``model`` (changed in place) under a LoRA adapter; perturbed so that tuned differs from base."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft_model = get_peft_model(
            model, lora_config(model.config.model_type, r, targets), autocast_adapter_dtype=False
        )
    if perturb:
        perturb_adapter(peft_model, seed)
    return peft_model.eval()


def lora_config(arch: str, r: int = 4, targets: str | list[str] = "all-linear") -> LoraConfig:
    return LoraConfig(
        r=r,
        lora_alpha=2 * r,
        lora_dropout=0.0,
        target_modules=targets,
        exclude_modules=_MAMBA_EXCLUDED if arch == "falcon_h1" else None,
        task_type="CAUSAL_LM",
    )


def tiny_tokenizer(vocab: int = VOCAB) -> PreTrainedTokenizerFast:
    """One word a token, "w3" to "w<vocab - 1>" after the three special ones; for trainers that ask for a tokenizer."""
    words = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, **{f"w{i}": i for i in range(3, vocab)}}
    raw = Tokenizer(models.WordLevel(words, unk_token="w3"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def save_tiny(folder: Path, model: PreTrainedModel | None = None) -> Path:
    """A model (Llama, seed 0, where none is given) in float32 and its tokenizer, as a user's model folder."""
    (model or tiny("llama")).float().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def perturb_adapter(model: torch.nn.Module, seed: int = 1, scale: float = 0.1) -> None:
    """Random values into every adapter weight, a function of (its name, seed) alone.

    Keyed by name, so that a model wrapped once more, or on another rank, gets the same values.
    """
    touched = 0
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" not in name:
                continue
            generator = torch.Generator().manual_seed(_key(adapter_name(name)) ^ seed)
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(scale * noise)
            touched += 1
    assert touched, "no adapter weight was found: the perturbed model would equal the base"


def adapter_name(name: str) -> str:
    """A parameter's name without the wrappers that accelerate, DDP or checkpointing put in front of it."""
    return name.replace("module.", "").replace("_checkpoint_wrapped_.", "").replace("_orig_mod.", "")


def _key(text: str) -> int:
    # Not hash(): it differs from process to process.
    value = 0
    for byte in text.encode():
        value = (value * 131 + byte) % (2**31 - 1)
    return value
