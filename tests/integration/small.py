"""What do the tests of whole trainings train, where no real model is needed? A tiny model, its tokenizer, and rows.

Everything is a function of its arguments, so that a process started anew gets the same.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.models import BOS, EOS, PAD, VOCAB, tiny

WORDS = [f"w{number}" for number in range(VOCAB - 4)]


def tokenizer() -> PreTrainedTokenizerFast:
    """One word, one token; a start token in front, as Llama's has."""
    vocabulary = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, "<unk>": 3, **{w: i + 4 for i, w in enumerate(WORDS)}}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    words.post_processor = TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def model(arch: str = "llama", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return tiny(arch, dtype=dtype)


def save_model(folder: Path, arch: str = "llama") -> Path:
    """A model folder as the command line takes it."""
    model(arch).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def rows(count: int, seed: int = 0, longest: int = 24) -> list[dict[str, str]]:
    """Prompt/completion rows of 4 to ``longest`` words of prompt and 1 to 6 of completion."""
    pick = random.Random(seed)
    return [
        {
            "prompt": " ".join(pick.choices(WORDS, k=pick.randint(4, longest))),
            "completion": " " + " ".join(pick.choices(WORDS, k=pick.randint(1, 6))),
        }
        for _ in range(count)
    ]


def lora(**changes: Any) -> LoraConfig:
    settings = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return LoraConfig(**{**settings, **changes})
