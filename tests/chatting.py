"""A small random instruct model: it has a chat template, writes letters, and ends what it writes after a few tokens."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.models import tiny
from tests.unit.data.chat import FAMILIES, tokenizer_of

__all__ = ["chat_model", "chat_tokenizer", "save_chat_model"]


def chat_tokenizer(family: str = "chatml") -> PreTrainedTokenizerFast:
    """A fresh copy: trainers change what a tokenizer pads with."""
    tokenizer = copy.deepcopy(tokenizer_of(FAMILIES[family]))
    tokenizer.pad_token = "<unk>"
    return tokenizer


def chat_model(seed: int = 0, *, dtype: torch.dtype = torch.float64, family: str = "chatml") -> PreTrainedModel:
    """One hidden unit mostly has one sign, so that the head's column of it is a bias: for the end of a turn,
    and against tokens that are no words."""
    tokenizer = chat_tokenizer(family)
    model = tiny("llama", vocab=len(tokenizer), seed=seed, dtype=dtype)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.eos_token_id, model.config.bos_token_id = tokenizer.eos_token_id, None
    model.config.pad_token_id = tokenizer.pad_token_id
    specials = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 0] = 1.5
        model.model.norm.weight[0] = 1.0
        head = model.get_output_embeddings().weight
        for token in range(len(tokenizer)):
            text = tokenizer.decode([token])
            plain = text.isascii() and text.strip().isalpha() and len(text.strip()) > 1 and token not in specials
            head[token, 0] = 0.0 if plain else -20.0
        head[tokenizer.eos_token_id, 0] = 2.0
    return model


def save_chat_model(folder: Path, seed: int = 0, family: str = "chatml") -> Path:
    """A model folder as the command line takes it."""
    chat_model(seed, dtype=torch.float32, family=family).save_pretrained(folder)
    chat_tokenizer(family).save_pretrained(folder)
    return folder
